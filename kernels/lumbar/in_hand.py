"""Which studies are being read or graded just now, on disk: what a kernel had in hand when it was killed.

A file that breaks native code kills the process.  The next one begins with all other studies, takes those that were in
hand one by one after them, and leaves out what was in hand at a second death.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

DEATHS_ALLOWED = 1


class InHand:
    """The studies in hand, and how often each was so when a kernel died.  `path` None: nothing is written."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._now: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.deaths: Counter[str] = Counter()
        if path is not None:
            self.deaths = _deaths(path)
            self._write()

    def take(self, studies: Iterable[str]) -> None:
        """These are worked on from now on."""
        with self._lock:
            self._now.update(studies)
            self._write()

    def release(self, studies: Iterable[str]) -> None:
        """These are not any more."""
        with self._lock:
            self._now.subtract(studies)
            self._now = +self._now
            self._write()

    @property
    def given_up(self) -> list[str]:
        """The studies that are not taken in hand again."""
        return [study for study, deaths in self.deaths.items() if deaths > DEATHS_ALLOWED]

    def batches(self, studies: Sequence[str], at_once: int) -> list[list[str]]:
        """Batches of so many studies in their order; after them the suspects, each alone."""
        innocent = [study for study in studies if not self.deaths[study]]
        suspects = [study for study in studies if 0 < self.deaths[study] <= DEATHS_ALLOWED]
        whole = [innocent[start : start + at_once] for start in range(0, len(innocent), at_once)]
        return whole + [[study] for study in suspects]

    def _write(self) -> None:
        if self._path is not None:
            # In place and unsynced: the process may die, the machine does not, and a torn line is read as none.
            self._path.write_text(json.dumps({"deaths": self.deaths, "now": list(self._now)}), encoding="utf-8")


def _deaths(path: Path) -> Counter[str]:
    try:
        left = json.loads(path.read_text(encoding="utf-8"))
        return Counter(left["deaths"]) + Counter(set(left["now"]))
    except (OSError, ValueError, KeyError, TypeError):  # the first kernel, or a torn line
        return Counter()
