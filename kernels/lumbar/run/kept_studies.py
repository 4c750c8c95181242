"""Decoded studies kept in memory from one round to the next, as many as a bound holds."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path

from ..dicom.study import Study

# 10 to 12 MB a study.  Bytes, and the share of the memory that was available at the start.
KEPT_BYTES = 2_000_000_000
KEPT_SHARE = 0.1
# Faults of a mount or disk may be over by the next round: such a study is read again.
MAY_PASS = frozenset({"unreadable-file", "empty-file", "no-folder", "empty-folder", "study-unreadable"})
MEMINFO = Path("/proc/meminfo")


class KeptStudies:
    """Studies by name, up to `limit_bytes` of pixels.  Thread-safe.

    Nothing is replaced: every round takes the studies in the same order, so the first ones that fit are found in every
    round, where a cache of the latest ones would drop each just before it is wanted.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit_bytes = default_limit_bytes() if limit_bytes is None else limit_bytes
        self._studies: dict[str, Study] = {}
        self._lock = threading.Lock()
        self.is_open = True
        """Whether more studies are kept: no round may follow that wants them."""
        self.bytes = 0
        """Of pixels, of all studies kept."""

    def keep(self, study: Study) -> None:
        """Keep a study as it was read, before networks add problems to it, where it fits and was read without fault."""
        size = sum(stack.pixels.nbytes for stack in study.stacks)
        if not study.stacks or any(problem.kind in MAY_PASS for problem in study.problems):
            return
        with self._lock:
            if self.is_open and self.bytes + size <= self._limit_bytes and study.study_id not in self._studies:
                self._studies[study.study_id] = _copy(study)
                self.bytes += size

    def get(self, name: str) -> Study | None:
        """The study as it was read; its pixels are shared, its problems are not.  None where it is not kept."""
        study = self._studies.get(name)
        return None if study is None else _copy(study)

    def __len__(self) -> int:
        return len(self._studies)


def _copy(study: Study) -> Study:
    return replace(study, problems=list(study.problems))


def default_limit_bytes() -> int:
    """KEPT_BYTES, or KEPT_SHARE of the available memory where that is known and less."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, ValueError):  # not Linux
        found = None
    return KEPT_BYTES if found is None else min(KEPT_BYTES, int(KEPT_SHARE * 1024 * int(found[1])))
