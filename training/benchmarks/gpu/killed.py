"""A kernel that the system kills twice goes on where it was, and answers what an undisturbed one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kernels.lumbar.run import output_check

from .kernel_runs import KernelRun, arguments, run, worst
from .setting import Record, Setting

TIMES = 3
POLL_S = 0.05
MOST_APART = 5e-3


def measure(setting: Setting, record: Record) -> None:
    """Kill it once its first file stands, once more when it has kept answers, and hold it against a whole run."""
    times = 1 if setting.small else TIMES
    whole = run(setting, "undisturbed", setting.device, times)
    out = setting.work / "killed"
    started = time.monotonic()
    command = [sys.executable, "-m", "kernels.lumbar.supervise", *arguments(setting, out, setting.device, times)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as watcher:
        store = out / output_check.PROGRESS / output_check.STORE
        first = _kill(watcher, store.exists)
        second = _kill(watcher, lambda: _has_answers(store), last=first)
        code = watcher.wait()
    done = KernelRun(out, time.monotonic() - started)
    table = record.table("killed", ["run", "seconds", "difference", "what"])
    table.rows.append(["undisturbed", whole.seconds, 0.0, whole.summary()])
    kills = sum(pid is not None for pid in (first, second))
    table.rows.append([f"killed {kills} times", done.seconds, worst(done, whole), done.summary()])
    record.check(code == 0, f"the watching process ended with code {code}")
    record.check(kills > 0, "the kernel ended before it could be killed")
    told = done.report["problem_counts"].get("kernel-ended", 0)
    record.check(told == kills, f"{kills} kills, and the report names {told}")
    record.check(worst(done, whole) <= MOST_APART, f"a probability differs by {worst(done, whole):.2g}")
    record.check(done.report["studies"] == whole.report["studies"], done.summary())


def _kill(watcher: subprocess.Popen[bytes], is_time: Callable[[], bool], last: int | None = None) -> int | None:
    """Kill the kernel when it is time, another than the last; its process id, None where it ended before."""
    while watcher.poll() is None:
        time.sleep(POLL_S)
        child = child_of(watcher.pid)
        if child is not None and child != last and is_time():
            os.kill(child, signal.SIGKILL)
            return child
    return None


def _has_answers(store: Path) -> bool:
    """Whether a kernel has kept what graders said."""
    try:
        with np.load(store, allow_pickle=False) as kept:
            return bool(kept["passes"].any())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False


def child_of(parent: int) -> int | None:
    """The process that another one has started, as /proc tells."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = status.read_text().split(" ", 1)
        except OSError:  # it has ended
            continue
        if int(rest.rpartition(")")[2].split()[1]) == parent:
            return int(pid)
    return None
