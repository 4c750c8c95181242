"""What ends a training early, with a checkpoint to resume from: a session's time limit, or SIGTERM."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class OutOfTime(Exception):
    """The session ends between two epochs; the next one resumes from the checkpoint."""


class StoppedBySignal(OutOfTime):
    """SIGTERM, with which clusters and rented machines reclaim a machine; the checkpoint has all that was done."""


@dataclass
class StopFlag:
    """Set by the handler of SIGTERM.  Not a threading.Event, whose lock a second signal would wait for forever."""

    is_set: bool = False

    def set(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.is_set = True


@contextmanager
def sigterm_flag() -> Iterator[StopFlag]:
    """A flag that SIGTERM sets, in place of ending the process; outside the main thread it is never set."""
    stop = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, stop.set)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


class TimeLimit:
    """Checks before every epoch whether it would end in time."""

    # Share of the limit reserved for export and validation, which follow the last epoch.
    RESERVE = 0.03

    def __init__(self, limit_s: float = math.inf, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + limit_s * (1 - self.RESERVE)
        self._longest_s = 0.0
        self._epochs = 0

    def before_epoch(self, last_s: float | None) -> None:
        """Raises OutOfTime if an epoch as long as the network's last one (s) would end too late.

        A network without a last one is assumed to be as slow as the slowest of the session.  The first epoch of a
        session always runs: otherwise a limit shorter than an epoch would never make progress.
        """
        self._longest_s = max(self._longest_s, last_s or 0.0)
        expected_s = self._longest_s if last_s is None else last_s
        if self._epochs and self._now() + expected_s > self._end:
            raise OutOfTime
        self._epochs += 1
