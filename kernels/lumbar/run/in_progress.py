"""Which studies are being read or graded just now, on disk: what a kernel had in hand when it was killed.

A file that breaks native code kills the process.  The next one begins with all other studies, takes those that were in
hand one by one after them, and leaves out what was in hand at a second death.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

DEATHS_ALLOWED = 1


class InProgress:
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

    def passes(self, studies: Sequence[str]) -> list[list[str]]:
        """What may be in hand together: all that are innocent; then the suspects, each alone."""
        innocent = [study for study in studies if not self.deaths[study]]
        suspects = [study for study in studies if 0 < self.deaths[study] <= DEATHS_ALLOWED]
        return ([innocent] if innocent else []) + [[study] for study in suspects]

    def _write(self) -> None:
        if self._path is None:
            return
        # Replaced, so that a kill in between loses nothing; unsynced, as the process may die but the machine does not.
        part = self._path.with_suffix(".part")
        with contextlib.suppress(OSError):  # a full disk costs the knowledge, not the study
            part.write_text(json.dumps({"deaths": self.deaths, "now": list(self._now)}), encoding="utf-8")
            os.replace(part, self._path)


def _deaths(path: Path) -> Counter[str]:
    try:
        left = json.loads(path.read_text(encoding="utf-8"))
        return Counter(left["deaths"]) + Counter(set(left["now"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the first kernel, or nothing of ours
        return Counter()
