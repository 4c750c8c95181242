"""Lock files, which the operating system releases when the process that holds them ends, however it ends."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

LOCK = ".lock"
log = logging.getLogger("locks")
# is_held takes a shared lock for an instant, so a lock counts as held only after so many tries.
TRIES = 4
PAUSE_S = 0.05


class BusyError(Exception):
    """Another process holds the lock, in one sentence."""


@contextmanager
def hold(path: Path, wait: bool = True) -> Iterator[int]:
    """Hold a lock file, which names this process; `wait` until it is free, or raise BusyError.

    Gives its file descriptor: processes that inherit it hold the lock as well, until the last of them ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as stream:
        if wait:
            fcntl.flock(stream, fcntl.LOCK_EX)
        elif not _is_taken_at_once(stream.fileno()):
            stream.seek(0)
            by = stream.read().strip() or "another process"
            raise BusyError(f"{path.parent} is in use by {by}: wait for it, end it, or name another folder")
        with suppress(OSError):  # a full disk must not cost the lock
            name_holder(stream.fileno())
        yield stream.fileno()


def _is_taken_at_once(lock: int) -> bool:
    for tried in range(TRIES):
        time.sleep(PAUSE_S if tried else 0)
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def name_holder(lock: int, further: str = "") -> None:
    """Write into a lock file which process holds it, and which others do."""
    os.ftruncate(lock, 0)
    os.write(lock, f"process {os.getpid()} on {os.uname().nodename}{further}".encode())


def alone(runs: Path) -> AbstractContextManager[int]:
    """Hold RUNS/.lock: one run at a time in a folder.  Gives its file descriptor.  Raises BusyError."""
    return hold(runs / LOCK, wait=False)


@contextmanager
def exclusive(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold a lock file; a second process waits, after logging the sentence `waiting`."""
    if waiting and is_held(path):
        log.info(waiting)
    with hold(path):
        yield


def is_busy(runs: Path) -> bool:
    """Whether a run uses the folder at this moment."""
    return is_held(runs / LOCK)


def is_held(path: Path) -> bool:
    """Whether a running process holds a lock file.

    Takes a shared lock and releases it at once, so that concurrent checks do not mistake each other for the holder.
    """
    try:
        with open(path) as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def terminate_holder(path: Path) -> None:
    """Send SIGTERM to the process of this machine that holds a lock file, if there is one."""
    if is_held(path) and (found := re.match(r"process (\d+) on (.*)", path.read_text(encoding="utf-8"))):
        number, node = found.groups()
        if node == os.uname().nodename:
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGTERM)
