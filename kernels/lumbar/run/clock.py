"""Time limit of a run, and measured seconds of every stage and member."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Share of the time left, and seconds, reserved for the last file, the report, and steps slower than before.
RESERVE = 0.05
FINISH_S = 2.0
# Weight of the newest measurement in the moving average: a disk or GPU that slows down shows within a few studies.
NEWEST = 0.2
# Timeout: seconds without a study read, without a forward of a batch, or without a network loaded.
PATIENCE_S = 300.0


@dataclass
class _Measured:
    total_s: float = 0.0
    mean_s: float = 0.0
    recent_s: float = 0.0
    studies: int = 0


class Clock:
    """Measured seconds by stage and member, and the time limit.  Thread-safe."""

    def __init__(self, limit_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + limit_s
        self._measured: dict[str, _Measured] = {}
        self._of_study_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def left_s(self) -> float:
        """Seconds until the limit."""
        return self._end - self._now()

    def available_s(self) -> float:
        """Seconds until the limit, less the reserve."""
        return self.left_s() * (1 - RESERVE) - FINISH_S

    def record(self, name: str, seconds: float, studies: int = 1, passes: int = 1) -> None:
        """Add a measurement of a stage or member: the seconds of so many studies in so many passes each."""
        each = seconds / studies / passes
        with self._lock:
            one = self._measured.setdefault(name, _Measured(recent_s=each))
            one.total_s += seconds
            one.studies += studies
            one.mean_s += (each - one.mean_s) * studies / one.studies
            one.recent_s += (each - one.recent_s) * NEWEST

    def record_studies(self, studies: Sequence[str], seconds: float) -> None:
        """Add seconds of a reader or a device that went to some studies, in equal parts."""
        with self._lock:
            for study in studies:
                self._of_study_s[study] = self._of_study_s.get(study, 0.0) + seconds / len(studies)

    def study_seconds(self) -> dict[str, float]:
        """Study → seconds of readers and devices so far, in this process."""
        with self._lock:
            return dict(self._of_study_s)

    def seconds(self, name: str) -> float | None:
        """Expected seconds of one more study in one pass (the larger of mean and moving average); None = unknown."""
        with self._lock:
            one = self._measured.get(name)
            return None if one is None or not one.studies else max(one.mean_s, one.recent_s)

    def mean_s(self, name: str) -> float:
        """Mean seconds of a stage or member per study and pass; 0 where it was never measured."""
        with self._lock:
            return self._measured[name].mean_s if name in self._measured else 0.0

    def totals_s(self) -> dict[str, float]:
        """Total seconds so far, by stage and member."""
        with self._lock:
            return {name: round(one.total_s, 3) for name, one in sorted(self._measured.items())}
