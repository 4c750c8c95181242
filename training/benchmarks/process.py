"""Calls a function in a process of its own: with a time limit, a log, and a peak of memory that is its own.

    python -m training.benchmarks.process MODULE:FUNCTION [ARGUMENT …]

The function gets its arguments as strings and may return an exit code.
"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHOWN_LINES = 14
# Unit of ru_maxrss: KiB, on macOS bytes.
RUSAGE_MIB = 1 << 20 if sys.platform == "darwin" else 1 << 10


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None
    """Exit code, or minus the signal; None after a timeout."""
    seconds: float
    log_tail: str


def call(
    function: str, arguments: Sequence[object], log: Path, timeout_s: float | None = None, threads: int | None = None
) -> Ended:
    """Call "module:function" in a new process.  `threads`: of torch and OpenMP.

    With a time limit it has a process group of its own, so that all that it started ends with it.
    """
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", __name__, function, *map(str, arguments)]
    started = time.monotonic()
    has_group = timeout_s is not None
    with log.open("wb") as stream:
        child = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=has_group,
        )
        code = None
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _kill(child, has_group)
    return Ended(code, time.monotonic() - started, _tail(log))


def _kill(child: subprocess.Popen[bytes], has_group: bool) -> None:
    try:
        if has_group:
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    except (ProcessLookupError, PermissionError):  # nothing is left
        pass
    child.wait()


def _tail(log: Path) -> str:
    """The last lines, without those of progress bars."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([line[:300] for line in lines if "it/s" not in line and "s/it" not in line][-SHOWN_LINES:])


def peak_mib() -> float:
    """Peak resident memory of this process; ru_maxrss alone would count that of the process which started it too."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii")) if status.is_file() else None
    return int(found[1]) / 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RUSAGE_MIB


def main() -> None:
    """Command line, only for `call`."""
    function, *arguments = sys.argv[1:]
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO)
    module, _, name = function.partition(":")
    code = getattr(importlib.import_module(module), name)(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)  # as the kernel does: abandoned threads are not waited for


if __name__ == "__main__":
    main()
