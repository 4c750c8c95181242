"""Lock files that the operating system lets go of: one run at a time in a RUNS folder, and who holds what."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


class BusyError(Exception):
    """Another run has the folder, in one sentence."""


@contextmanager
def alone(runs: Path) -> Iterator[int]:
    """Hold RUNS/.lock: the operating system lets go of it when the last process that has it open ends.

    Gives its file descriptor, for processes that are to hold it as well.  Raises BusyError.
    """
    runs.mkdir(parents=True, exist_ok=True)
    with open(runs / LOCK, "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            by = stream.read().strip() or "another process"
            raise BusyError(f"{runs} is in use by {by}: wait for it, end it, or name another folder") from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {os.uname().nodename}")
        stream.flush()
        yield stream.fileno()


def is_busy(runs: Path) -> bool:
    """Whether a run has the folder at this moment."""
    return is_held(runs / LOCK)


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file; one that was killed holds none.

    Asks for a share of the lock and lets go of it at once: those who ask do not take each other for the holder.
    """
    try:
        with open(path) as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False
