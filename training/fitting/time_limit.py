"""How long a training session may go on: asked before every epoch, after which a checkpoint is saved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class OutOfTime(Exception):
    """The session ends here, between two epochs; the next one goes on from the checkpoint."""


class TimeLimit:
    """Says before every epoch whether it would still end in time."""

    # Share of the limit that is kept back for export and validation, which follow the last epoch and are not cut.
    RESERVE = 0.03

    def __init__(self, limit_s: float = math.inf, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + limit_s * (1 - self.RESERVE)
        self._longest_s = 0.0
        self._epochs = 0

    def before_epoch(self, last_s: float | None) -> None:
        """Raises OutOfTime where an epoch as long as the network's last one would end too late.

        A network without a last one is taken to be as slow as the slowest of the session.  The first epoch of a session
        is always let through: a limit that is too short for any would end every session where it began.
        """
        self._longest_s = max(self._longest_s, last_s or 0.0)
        expected_s = self._longest_s if last_s is None else last_s
        if self._epochs and self._now() + expected_s > self._end:
            raise OutOfTime
        self._epochs += 1
