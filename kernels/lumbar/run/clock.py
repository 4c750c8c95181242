"""The clock: what is left of the time, and what everything has taken so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

# Share of the time left, and seconds, that are kept back for the last file, the report, and what is larger than before.
RESERVE = 0.05
FINISH_S = 2.0
# How much of a mean the newest measurement is: a disk or GPU that slows down is noticed within a few studies.
NEWEST = 0.2
# Without a study read, after which the reads in progress are given up.
PATIENCE_S = 300.0


@dataclass
class _Measured:
    total_s: float = 0.0
    mean_s: float = 0.0
    recent_s: float = 0.0
    studies: int = 0


class Clock:
    """Measured seconds by stage and member, and the time limit.  Safe to use from several threads."""

    def __init__(self, limit_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + limit_s
        self._measured: dict[str, _Measured] = {}
        self._lock = threading.Lock()

    def left_s(self) -> float:
        """Seconds until the limit."""
        return self._end - self._now()

    def available_s(self) -> float:
        """Seconds until the limit that may be worked in."""
        return self.left_s() * (1 - RESERVE) - FINISH_S

    def record(self, name: str, seconds: float, studies: int = 1, passes: int = 1) -> None:
        """One more measurement of a stage or member: what so many studies took, each shown so many times."""
        each = seconds / studies / passes
        with self._lock:
            one = self._measured.setdefault(name, _Measured(recent_s=each))
            one.total_s += seconds
            one.studies += studies
            one.mean_s += (each - one.mean_s) * studies / one.studies
            one.recent_s += (each - one.recent_s) * NEWEST

    def seconds(self, name: str) -> float | None:
        """Seconds that one more study has to be expected to take, in one pass; None where that was never measured."""
        with self._lock:
            one = self._measured.get(name)
            return None if one is None or not one.studies else max(one.mean_s, one.recent_s)

    def mean_s(self, name: str) -> float:
        """Mean seconds a study, in one pass, of a stage or member; 0 where it was never measured."""
        with self._lock:
            return self._measured[name].mean_s if name in self._measured else 0.0

    def totals_s(self) -> dict[str, float]:
        """Seconds spent so far, by stage and member."""
        with self._lock:
            return {name: round(one.total_s, 3) for name, one in sorted(self._measured.items())}
