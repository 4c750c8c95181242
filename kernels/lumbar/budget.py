"""The clock: how much of the ensemble the remaining studies can still have."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How much is done for a study."""

    tta: bool
    folds: int
    """Members of the first so many folds take part; 0 = the study keeps its prior."""


class Budget:
    """Chooses the effort of the next study from measured seconds; drops TTA first, then folds, then all."""

    # Share of the time left that is kept back, for the last file, the report, and studies larger than those seen.
    RESERVE = 0.05

    def __init__(self, limit_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + limit_s
        self._seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def left_s(self) -> float:
        """Seconds until the limit."""
        return self._end - self._now()

    def record(self, name: str, seconds: float) -> None:
        """One more measurement of a stage or member."""
        entry = self._seconds[name]
        entry[0] += seconds
        entry[1] += 1

    def mean_s(self, name: str) -> float:
        """Mean seconds of a stage or member so far; 0 where it was never measured."""
        total, count = self._seconds.get(name, (0.0, 0.0))
        return total / count if count else 0.0

    def totals_s(self) -> dict[str, float]:
        """Seconds spent so far, by stage and member."""
        return {name: round(total, 3) for name, (total, _) in sorted(self._seconds.items())}

    def effort(self, members: Iterable[tuple[str, int, int]], studies_left: int) -> Effort:
        """The largest effort whose measured cost for all studies left fits the time left.

        members: (name, fold, passes with TTA).  Costs are kept for a forward without TTA under the member's name.
        """
        members = list(members)
        folds = sorted({fold for _, fold, _ in members})
        available = self.left_s() * (1 - self.RESERVE)
        steps = [Effort(True, len(folds))] + [Effort(False, count) for count in range(len(folds), 0, -1)]
        for step in steps:
            active = set(folds[: step.folds])
            cost = self.mean_s("read") + sum(
                self.mean_s(name) * (passes if step.tta else 1) for name, fold, passes in members if fold in active
            )
            if available > 0 and cost * studies_left <= available:
                return step
        return Effort(False, 0)
