"""Lock files, released by the operating system when their process ends: one run at a time in a RUNS folder."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
log = logging.getLogger("locks")


class BusyError(Exception):
    """Another run uses the folder, in one sentence."""


@contextmanager
def alone(runs: Path) -> Iterator[int]:
    """Hold RUNS/.lock until the last process that has it open ends.

    Yields its file descriptor, for child processes that shall hold it too.  Raises BusyError.
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


@contextmanager
def exclusive(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold a lock file; a second process waits, after logging the sentence `waiting`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                log.info(waiting)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def is_busy(runs: Path) -> bool:
    """Whether a run uses the folder at this moment."""
    return is_held(runs / LOCK)


def is_held(path: Path) -> bool:
    """Whether a running process holds a lock file.

    Tries a shared lock, so that concurrent checks do not see each other as holders.
    """
    try:
        with open(path) as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False
