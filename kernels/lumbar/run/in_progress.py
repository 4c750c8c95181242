"""Journal of the studies in progress, on disk, so that a restart knows which studies may have crashed the kernel.

A file that breaks native code kills the process.  The next one runs all other studies first, then each study that was
in progress by itself, and leaves out those that were in progress at a second death.
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
    """Studies in progress, and at how many deaths of a kernel each one was.  `path` None: nothing is written."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._now: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.deaths: Counter[str] = Counter()
        if path is not None:
            self.deaths = _deaths(path)
            self._write()

    def take(self, studies: Iterable[str]) -> None:
        """Mark studies as in progress."""
        with self._lock:
            self._now.update(studies)
            self._write()

    def release(self, studies: Iterable[str]) -> None:
        """Undo one `take`."""
        with self._lock:
            self._now.subtract(studies)
            self._now = +self._now
            self._write()

    @property
    def abandoned(self) -> list[str]:
        """Studies that were in progress at too many deaths."""
        return [study for study, deaths in self.deaths.items() if deaths > DEATHS_ALLOWED]

    def groups(self, studies: Sequence[str]) -> list[list[str]]:
        """Studies that may run together: all that were at no death; then each that was at one, alone."""
        sound = [study for study in studies if not self.deaths[study]]
        alone = [[study] for study in studies if 0 < self.deaths[study] <= DEATHS_ALLOWED]
        return ([sound] if sound else []) + alone

    def _write(self) -> None:
        if self._path is None:
            return
        # Replaced, so that a kill in between loses nothing; no fsync, as the process may die but the machine does not.
        part = self._path.with_suffix(".part")
        with contextlib.suppress(OSError):  # a full disk costs the journal, not the study
            part.write_text(json.dumps({"deaths": self.deaths, "now": list(self._now)}), encoding="utf-8")
            os.replace(part, self._path)


def _deaths(path: Path) -> Counter[str]:
    try:
        journal = json.loads(path.read_text(encoding="utf-8"))
        return Counter(journal["deaths"]) + Counter(set(journal["now"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the first start, or a damaged file
        return Counter()
