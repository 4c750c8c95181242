"""What is done of a crop cache that is being made, so that a killed run can be gone on with.

A journal lies beside the files: its first line names them, each other one is a study whose crops are on the disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from kernels.lumbar.labels import UNITS
from kernels.lumbar.problems import Problem
from kernels.lumbar.run.submission import replace_text
from training.data.cache.decode import CacheRequest, geometry_file
from training.digests import digest


@dataclass(frozen=True)
class Wanted:
    """Files that are to be made of one data set."""

    out: Path
    made_of: str
    files: Mapping[CacheRequest, Path]
    """The files of pixels; those of the geometry and the indices lie beside them."""
    studies: Sequence[str]
    landmark_file: Path

    def part(self, request: CacheRequest) -> Path:
        """Where pixels grow until all files are complete."""
        return self.files[request].with_suffix(".part.npy")

    @property
    def names(self) -> set[str]:
        """Of the files of pixels."""
        return {file.name for file in self.files.values()}

    def journal(self, names: str = "*") -> str:
        """The name of the journal that says what is done of some files, or of any of this data set."""
        return f"making-{self.made_of[:16]}-{names}.jsonl"

    def layouts(self) -> dict[Path, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Part → shape and type."""
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


@dataclass
class Made:
    """What is known of the studies that are done."""

    landmarks: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    present: dict[str, dict[str, list[bool]]] = field(default_factory=dict)
    """Study → file → units."""

    def add(self, line: Mapping[str, Any]) -> None:
        """Take up a line of the journal."""
        self.landmarks[line["study"]] = line["landmarks"]
        self.problems += [Problem(*one) for one in line["problems"]]
        self.present[line["study"]] = line["present"]


def begin_journal(wanted: Wanted) -> Path:
    """A journal of no studies yet."""
    names = sorted(wanted.names)
    journal = wanted.out / wanted.journal(digest(names)[:8])
    replace_text(journal, json.dumps(names) + "\n")
    return journal


def resumed(wanted: Wanted) -> tuple[Path, Made] | None:
    """The journal of a killed run that made all these files, and what it had done; None where there is none."""
    for part, layout in wanted.layouts().items():
        try:
            found = np.load(part, mmap_mode="r")
        except (OSError, ValueError, EOFError, SyntaxError, TokenError):
            return None
        if (found.shape, found.dtype) != layout:
            return None
    for journal in sorted(wanted.out.glob(wanted.journal())):
        text = journal.read_text(encoding="utf-8")
        made = Made()
        try:
            first, *lines = text[: text.rfind("\n") + 1].splitlines()  # without a line that was being written
            names = set(json.loads(first))
            for line in lines:
                made.add(json.loads(line))
        except (ValueError, KeyError, TypeError):
            continue
        if wanted.names <= names and bool(wanted.names) == bool(names):
            # From here on it speaks of these files only: others are not filled any more.
            replace_text(journal, "".join(line + "\n" for line in [json.dumps(sorted(wanted.names)), *lines]))
            return journal, made
    return None


def save(wanted: Wanted, journal: Path, unsaved: list[str]) -> None:
    """Note what is done, once it is on the disk."""
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
    """Remove what killed runs left, but for what can still be gone on with: other files of the same data set."""
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
