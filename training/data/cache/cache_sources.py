"""Digests of the inputs of stacks and networks: tables, image files, and the code that reads them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2

from kernels.locks import exclusive
from kernels.lumbar.run.submission import replace_json
from training.data.tables import Tables
from training.digests import code_digest, digest

# The module that decodes, and the packages in which its imports are followed.
DECODER, FOLLOWED = ("training.data.cache.decode",), ("kernels.lumbar.", "training.data.")
# Network file systems have a high latency, and answer many requests in parallel.
LISTING_THREADS = 16


@dataclass(frozen=True)
class Sources:
    """The inputs of a data set's stacks."""

    digests: dict[str, str]
    """Study → digest of its series' files and kinds, and of the code that decodes them."""
    series: int
    """Series in the tables."""
    missing: tuple[str, ...]
    """<study>/<series> of series without files."""


def sources_of(root: Path, tables: Tables) -> Sources:
    """Digests of the name, size and modification time of every file of the tables' series, without reading them.

    A copy of the data that does not preserve the times counts as other data.
    """
    names, listed = _listed(root, tables)
    missing = tuple(name for name, found in zip(names, listed, strict=True) if found is None)
    listings, code = dict(zip(names, listed, strict=True)), (code_digest(DECODER, FOLLOWED), cv2.__version__)
    digests = {}
    for study in map(str, tables.labels.index):
        series = [(*one, listings[f"{study}/{one[0]}"]) for one in tables.series.get(study, [])]
        digests[study] = digest(study, series, code)
    return Sources(digests, len(names), missing)


def images_digest(root: Path, tables: Tables, kept: Path, may_read: bool = True) -> str | None:
    """sha256 of the bytes of every file of the tables' series, independent of their place.

    `kept`: cache of the series' digests; only series whose listing changed are read.  None if some would have to be
    read and `may_read` is false.
    """
    names, listed = _listed(root, tables)
    listings = dict(zip(names, listed, strict=True))
    known = _known(kept)
    if _changed(listings, known):
        if not may_read:
            return None
        known = _read_again(root, listings, kept)
    return digest([(name, known[name][1] if name in known else None) for name in names])


def _changed(listings: Mapping[str, str | None], known: Mapping[str, list[str | None]]) -> list[str]:
    """The series whose listing (names, sizes, times) differs from the cached one."""
    return [name for name, found in listings.items() if known.get(name, [None])[0] != found]


def _read_again(root: Path, listings: Mapping[str, str | None], kept: Path) -> dict[str, list[str | None]]:
    """Hash the changed series and update the cached digests; of concurrent jobs one reads."""
    with exclusive(kept.with_name(f".{kept.name}.lock")):
        known = _known(kept)
        changed = _changed(listings, known)
        there = [name for name in changed if listings[name] is not None]
        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            read = list(pool.map(lambda name: _content(root / "train_images" / name), there))
        known = {name: pair for name, pair in known.items() if listings.get(name) == pair[0]}
        known |= {name: [listings[name], content] for name, content in zip(there, read, strict=True)}
        if changed:
            replace_json(kept, known)
    return known


def _listed(root: Path, tables: Tables) -> tuple[list[str], list[str | None]]:
    """<study>/<series> of all series of the tables, and the listing of each."""
    names = [f"{study}/{series}" for study in tables.labels.index for series, _ in tables.series.get(study, [])]
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        return names, list(pool.map(lambda name: listing_of(root / "train_images" / name), names))


def _known(kept: Path) -> dict[str, list[str | None]]:
    """Series → [digest of its listing, digest of its content]; empty for a missing or damaged cache."""
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: pair for name, pair in pairs if isinstance(pair, list) and len(pair) == 2}


def _content(folder: Path) -> str:
    """sha256 of the names and bytes of a series' files; of unreadable files the name alone."""
    content = hashlib.sha256()
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    for name in names:
        content.update(f"{name}\0".encode("utf-8", "surrogateescape"))
        try:
            content.update(hashlib.sha256((folder / name).read_bytes()).digest())
        except OSError:  # a broken link, a folder: reported when it is decoded
            continue
    return content.hexdigest()


def listing_of(folder: Path) -> str | None:
    """sha256 of the names, sizes and modification times of a series' files; None without any file."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(_listed_file(entry) for entry in entries if not entry.name.startswith("."))
    except (OSError, ValueError):  # ValueError: not a valid path
        return None
    return hashlib.sha256(repr(found).encode("utf-8", "surrogateescape")).hexdigest() if found else None


def _listed_file(entry: os.DirEntry[str]) -> tuple[str, int, int]:
    try:
        found = entry.stat()
    except OSError:  # a broken link: reported when it is read
        return entry.name, -1, -1
    return entry.name, found.st_size, found.st_mtime_ns
