"""Asking again until something has come to pass, with a line for every change and an end to the waiting."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from .client import KaggleError


@dataclass(frozen=True)
class Patience:
    """How often to ask, and for how long, in seconds."""

    poll_s: float = 10.0
    limit_s: float = 1800.0

    def wait(self, what: str, state: Callable[[], tuple[str, bool]], goes_on: str) -> str:
        """Ask `state` until its second answer is true; returns the first one.

        Raises KaggleError when the time is over, with the command that `goes_on`.
        """
        started, last = time.monotonic(), ""
        while True:
            now, is_over = state()
            elapsed_s = time.monotonic() - started
            if now != last:
                _say(f"{what}: {now} ({_clock(elapsed_s)})")
                last = now
            if is_over:
                return now
            if elapsed_s + self.poll_s > self.limit_s:
                waited = _clock(elapsed_s)
                raise KaggleError(f"{what} is still '{now}' after {waited}: `{goes_on}` goes on waiting")
            time.sleep(self.poll_s)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
