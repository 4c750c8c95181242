"""One run of the kernel with clocks in it, and what it took of the machine.

    python -m training.benchmarks.kernel_child FILE [options of kernels.lumbar.predict]

FILE gets exit code, wall and CPU seconds, peak memory, and the seconds of the clocks.  The kernel runs in a process
forked from this small one: the peak memory of a process counts from what its parent had at its start.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# wait4 counts memory in KiB, on macOS in bytes.
MIB = 1 << 20 if sys.platform == "darwin" else 1 << 10


class Clocks:
    """Seconds by name, of calls that are not made by another clocked call: loading proves members by forwards."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu_s: dict[str, float] = defaultdict(float)
        """Of the thread that called: other load on the machine changes these less."""
        self._within = threading.local()
        self._lock = threading.Lock()

    def put_on(self, owner: Any, method: str, name: str) -> None:
        """Clock a method, or a module's function, from now on, in whichever thread it is called."""
        setattr(owner, method, self.clocked(getattr(owner, method), name))

    def clocked(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The same function with a clock."""

        @functools.wraps(call)
        def timed(*args: Any, **options: Any) -> Any:
            if getattr(self._within, "is_clocked", False):
                return call(*args, **options)
            self._within.is_clocked = True
            started, cpu_started = time.monotonic(), time.thread_time()
            try:
                return call(*args, **options)
            finally:
                self._within.is_clocked = False
                with self._lock:
                    self.seconds[name] += time.monotonic() - started
                    self.cpu_s[name] += time.thread_time() - cpu_started

        return timed


def run_kernel(options: Sequence[str], clocks_file: Path) -> int:
    """The kernel's exit code; its clocks are left in a file."""
    from kernels.lumbar import predict
    from kernels.lumbar.inputs.member_inputs import InputCache
    from kernels.lumbar.networks.loading import LoadedMember
    from kernels.lumbar.run import read_ahead
    from kernels.lumbar.run.device_worker import DeviceWorker

    clocks = Clocks()
    clocks.put_on(DeviceWorker, "load", "loading")
    clocks.put_on(read_ahead, "read_study", "reading")
    clocks.put_on(read_ahead.ReadAhead, "__next__", "waiting")
    clocks.put_on(InputCache, "inputs_of", "cutting")
    clocks.put_on(LoadedMember, "__call__", "forwards")
    imported_s = time.process_time()
    code = predict.main(options)
    taken = {"kernel_cpu_s": time.process_time() - imported_s, "clocks": clocks.seconds, "clocks_cpu": clocks.cpu_s}
    clocks_file.write_text(json.dumps(taken), encoding="utf-8")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the kernel's exit code."""
    record, *options = sys.argv[1:] if argv is None else argv
    clocks_file = Path(f"{record}.clocks")
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = run_kernel(options, clocks_file)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # as predict itself does: threads that timed out are not waited for
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    clocks = json.loads(clocks_file.read_text(encoding="utf-8")) if clocks_file.is_file() else {}
    taken = {
        **clocks,
        "code": code,
        "wall_s": time.monotonic() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / MIB,
    }
    Path(record).write_text(json.dumps(taken), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
