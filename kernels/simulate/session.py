"""One clean session of a simulated Kaggle run: the notebook's process, environment, time and memory limits."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, cast

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from kernels.simulate.mounting import SimulationError

# A kernel that exceeds its limit is stopped, as on Kaggle; starting Python and torch does not count.
GRACE_S = 120.0
MEMORY_POLL_S = 0.05
GIGABYTE = 1e9


@dataclass(frozen=True)
class Session:
    """Options of a session."""

    python: Path
    is_rerun: bool
    time_limit_s: float | None
    memory_gb: float


class OnePython(KernelSpecManager):
    """One kernel specification, that of a given Python, whatever the user has installed."""

    def __init__(self, python: Path) -> None:
        super().__init__(kernel_dirs=[])
        self.argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The same for every name."""
        return KernelSpec(argv=self.argv, display_name="Python 3", language="python")


class StreamingClient(NotebookClient):
    """A notebook client that forwards the cells' output at once."""

    def __init__(self, notebook: NotebookNode, root: Path, log: TextIO, session: Session) -> None:
        manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=OnePython(session.python),
            connection_file=str(root / "kernel.json"),
            transport="ipc" if os.name == "posix" else "tcp",
        )
        limit_s = session.time_limit_s
        super().__init__(notebook, km=manager, timeout=None if limit_s is None else math.ceil(limit_s + GRACE_S))
        self.stream_log = log
        self.manager = manager

    @property
    def process_id(self) -> int:
        """Of the started notebook process."""
        pid = cast(LocalProvisioner, self.manager.provisioner).pid
        if pid is None:
            raise RuntimeError("it has not been started")
        return pid

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        if msg["msg_type"] == "stream" and not cell.source.startswith("%%writefile"):
            text = msg["content"]["text"]
            self.stream_log.write(text)
            sys.stdout.write(text)
            sys.stdout.flush()
        return super().process_message(msg, cell, cell_index)


class MemoryWatch:
    """Kills a process and its descendants whose resident memory exceeds the limit.

    setrlimit would count reserved memory and let single allocations fail, which a notebook may survive; Kaggle counts
    resident memory, and kills.  Without /proc nothing is measured.
    """

    def __init__(self, limit_bytes: float) -> None:
        self.limit_bytes = limit_bytes
        self.peak_bytes = 0
        self.is_exceeded = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, pid: int) -> None:
        """Start watching a process."""
        self._thread = threading.Thread(target=self._watch, args=(pid,), daemon=True)
        self._thread.start()

    def _watch(self, pid: int) -> None:
        while not self._ended.wait(MEMORY_POLL_S):
            processes = [pid, *descendants(pid)]
            held = sum(held_bytes(one) for one in processes)
            self.peak_bytes = max(self.peak_bytes, held)
            if held > self.limit_bytes:
                self.is_exceeded = True
                for one in processes:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one, signal.SIGKILL)
                return

    def __enter__(self) -> MemoryWatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()


def held_bytes(pid: int) -> int:
    """Anonymous and shared resident memory of a process; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem") if name in fields)


def descendants(pid: int) -> list[int]:
    """Child processes of any depth."""
    found: list[int] = []
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    except OSError:
        return found  # it ended meanwhile
    return found + [deeper for child in found for deeper in descendants(child)]


def environment(root: Path, session: Session) -> dict[str, str]:
    """The kernel's environment variables: ours without those of this repository or its user."""
    private = ("PYTHON", "LUMBAR_", "KAGGLE_", "JUPYTER", "IPYTHON")
    variables = {key: value for key, value in os.environ.items() if not key.startswith(private)}
    variables |= {
        "PYTHONPATH": str(root / "site"),
        "HOME": str(root / "home"),
        "IPYTHONDIR": str(root / "home" / ".ipython"),
        "TMPDIR": str(root / "tmp"),
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "LUMBAR_INPUT_ROOT": str(root / "input"),
        "LUMBAR_OUT": str(root / "working"),
    }
    if session.is_rerun:
        variables["KAGGLE_IS_COMPETITION_RERUN"] = "1"
    if session.time_limit_s is not None:
        variables["LUMBAR_TIME_LIMIT"] = str(session.time_limit_s)
    return variables


def execute(notebook: NotebookNode, root: Path, session: Session) -> int:
    """Run all cells in root/working; outputs are put into `notebook`.  Returns the peak memory in bytes.

    Raises SimulationError where a cell fails, or the process dies or exceeds its time or memory.
    """
    with (root / "log.txt").open("w", encoding="utf-8") as log, MemoryWatch(session.memory_gb * GIGABYTE) as watch:
        client = StreamingClient(notebook, root, log, session)
        client.on_notebook_start = lambda notebook: watch.follow(client.process_id)
        try:
            client.execute(env=environment(root, session), cwd=str(root / "working"), cleanup_kc=True)
        except (CellExecutionError, CellTimeoutError, RuntimeError) as error:
            if not watch.is_exceeded:
                raise SimulationError(_reason(error, session.python)) from error
    if watch.is_exceeded:
        limit = f"{session.memory_gb:g} GB of memory"
        raise SimulationError(f"the notebook held more than {limit} and was killed, as on Kaggle: hold less at once")
    return watch.peak_bytes


def _reason(error: Exception, python: Path) -> str:
    """Why a session ended early."""
    if isinstance(error, CellExecutionError):
        return f"a cell of the notebook failed: {error.ename}: {error.evalue}"
    if isinstance(error, CellTimeoutError):
        return f"the notebook ran {GRACE_S:.0f} s past its limit and was stopped"
    if isinstance(error, DeadKernelError):
        return "the notebook's process died, most often for lack of memory"
    return f"the notebook's process did not start with {python}: {error}"
