"""Progress journal that lets a killed cache build resume.

It lies beside the cache files.  The first line names these; each other line is a study whose crops are on the disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from kernels.lumbar.labels import UNITS
from kernels.lumbar.run.submission import replace_text
from training.data.cache.decode import CacheRequest, geometry_file
from training.digests import digest


@dataclass(frozen=True)
class Wanted:
    """The cache files to be made of one data set."""

    out: Path
    made_of: str
    files: Mapping[CacheRequest, Path]
    """Files of pixels; geometry and index lie beside them."""
    studies: Sequence[str]
    landmark_file: Path

    def part(self, request: CacheRequest) -> Path:
        """Temporary file of pixels until all files are complete."""
        return self.files[request].with_suffix(".part.npy")

    @property
    def names(self) -> set[str]:
        """Names of the files of pixels."""
        return {file.name for file in self.files.values()}

    def journal(self, names: str = "*") -> str:
        """File name of a journal of this data set, or a pattern for all."""
        return f"making-{self.made_of[:16]}-{names}.jsonl"

    def layouts(self) -> dict[Path, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Temporary file → shape and dtype."""
        found: dict[Path, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        for request in self.files:
            shape, part = shape_of(request, len(self.studies)), self.part(request)
            found[part] = shape, np.dtype(np.uint8)
            found[geometry_file(part)] = (*shape[:2], 3, 3), np.dtype(np.float64)
        return found


def shape_of(request: CacheRequest, studies: int) -> tuple[int, int, int, int]:
    """(study × unit, slice, H, W)"""
    size = request.view.size_px
    return studies * len(UNITS[request.unit]), request.view.slices.count, size, size


Done = dict[str, dict[str, Any]]
"""Study → its line of the journal, with the KEYS."""
KEYS = {"study", "landmarks", "problems", "present"}


def begin_journal(wanted: Wanted) -> Path:
    """A journal of no studies yet."""
    names = sorted(wanted.names)
    journal = wanted.out / wanted.journal(digest(names)[:8])
    replace_text(journal, json.dumps(names) + "\n")
    return journal


def resumed(wanted: Wanted) -> tuple[Path, Done] | None:
    """Journal and finished studies of a killed run that made all these files; None without one."""
    for part, layout in wanted.layouts().items():
        try:
            found = np.load(part, mmap_mode="r")
        except (OSError, ValueError, EOFError, SyntaxError, TokenError):
            return None
        if (found.shape, found.dtype) != layout:
            return None
    for journal in sorted(wanted.out.glob(wanted.journal())):
        text = journal.read_text(encoding="utf-8")
        try:
            first, *lines = text[: text.rfind("\n") + 1].splitlines()  # drops an incomplete last line
            names = set(json.loads(first))
            done = {line["study"]: line for line in map(json.loads, lines)}
        except (ValueError, KeyError, TypeError):
            continue
        whole = all(line.keys() >= KEYS for line in done.values())
        if whole and wanted.names <= names and bool(wanted.names) == bool(names):
            # From here on only these files are filled.
            replace_text(journal, "".join(line + "\n" for line in [json.dumps(sorted(wanted.names)), *lines]))
            return journal, done
    return None


def save(wanted: Wanted, journal: Path, unsaved: list[str]) -> None:
    """Flush the files, then append the finished studies to the journal."""
    for part in wanted.layouts():
        _flush(part)
    with open(journal, "a", encoding="utf-8") as stream:
        stream.writelines(line + "\n" for line in unsaved)
        stream.flush()
        os.fsync(stream.fileno())
    unsaved.clear()


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear(wanted: Wanted) -> None:
    """Remove files of killed runs, except those that another build of this data set can resume."""
    kept: set[str] = set()
    for journal in wanted.out.glob("making-*.jsonl"):
        try:
            names = set(json.loads(journal.read_text(encoding="utf-8").partition("\n")[0]))
        except (ValueError, TypeError):
            names = set(wanted.names)
        if names == wanted.names or names & wanted.names or not journal.match(wanted.journal()):
            journal.unlink()
        else:
            kept |= names
    for part in wanted.out.glob("*.part.*"):
        if f"{part.name.partition('.part.')[0]}.npy" not in kept:
            part.unlink()
