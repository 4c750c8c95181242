"""What crops and networks depend on, as digests: tables, image files, and the code that reads and cuts them."""

from __future__ import annotations

import ast
import fcntl
import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2

from kernels.imports import imports_of, package_of
from kernels.lumbar.run.submission import replace_json
from training.data.tables import Tables
from training.digests import digest

# What cuts a study's crops, and the packages in which its imports are followed.
CUTTER, FOLLOWED = "training.data.cache.decode", ("kernels.lumbar.", "training.data.")
# Network file systems answer slowly, and many questions at once.
LISTING_THREADS = 16


@dataclass(frozen=True)
class CropSources:
    """What the crops of a data set are made of."""

    digest: str
    series: int
    """Series in the tables."""
    missing: tuple[str, ...]
    """<study>/<series> of those that have no file."""


def sources_of(root: Path, tables: Tables) -> CropSources:
    """Look at every file of every series of the tables, without reading it.

    A file that was replaced, added or removed changes the digest, by its name, size or time of change; a copy of the
    data that does not keep the times counts as other data.
    """
    names, listed = _listed(root, tables)
    missing = tuple(name for name, found in zip(names, listed, strict=True) if found is None)
    return CropSources(digest(tables.fingerprint, names, listed, code_digest(), cv2.__version__), len(names), missing)


def images_digest(root: Path, tables: Tables, kept: Path, may_read: bool = True) -> str | None:
    """sha256 of the bytes of every file of every series of the tables: what networks are made of, wherever it lies.

    `kept`: where it is written down of each series, so that only those are read whose files look changed; None where
    there is something to read and it may not be.
    """
    names, listed = _listed(root, tables)
    looks = dict(zip(names, listed, strict=True))
    known = _known(kept)
    if _changed(looks, known):
        if not may_read:
            return None
        known = _read_again(root, looks, kept)
    return digest([(name, known[name][1] if name in known else None) for name in names])


def _changed(looks: Mapping[str, str | None], known: Mapping[str, list[str | None]]) -> list[str]:
    """The series whose files look other than when they were read."""
    return [name for name, found in looks.items() if known.get(name, [None])[0] != found]


def _read_again(root: Path, looks: Mapping[str, str | None], kept: Path) -> dict[str, list[str | None]]:
    """Read what changed, and write down what is known of all series."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with open(kept.with_name(f".{kept.name}.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several jobs may begin at once: one reads
        known = _known(kept)
        changed = _changed(looks, known)
        there = [name for name in changed if looks[name] is not None]
        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            read = list(pool.map(lambda name: _content(root / "train_images" / name), there))
        known = {name: pair for name, pair in known.items() if looks.get(name) == pair[0]}
        known |= {name: [looks[name], content] for name, content in zip(there, read, strict=True)}
        if changed:
            replace_json(kept, known)
    return known


def _listed(root: Path, tables: Tables) -> tuple[list[str], list[str | None]]:
    """<study>/<series> of all series of the tables, and the listing of each."""
    names = [f"{study}/{series}" for study in tables.labels.index for series, _ in tables.series.get(study, [])]
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        return names, list(pool.map(lambda name: listing_of(root / "train_images" / name), names))


def _known(kept: Path) -> dict[str, list[str | None]]:
    """Series → its listing and content when it was read; empty where nothing is kept that can be read."""
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: pair for name, pair in pairs if isinstance(pair, list) and len(pair) == 2}


def _content(folder: Path) -> str:
    """sha256 of the names and bytes of a series; of a file that cannot be read, its name."""
    content = hashlib.sha256()
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    for name in names:
        content.update(f"{name}\0".encode("utf-8", "surrogateescape"))
        try:
            content.update(hashlib.sha256((folder / name).read_bytes()).digest())
        except OSError:  # a link to nothing, a folder: named when crops are made
            continue
    return content.hexdigest()


def listing_of(folder: Path) -> str | None:
    """sha256 of the names, sizes and times of a series; None where there is no file."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(_seen(entry) for entry in entries if not entry.name.startswith("."))
    except (OSError, ValueError):  # ValueError: no path can be so named
        return None
    return hashlib.sha256(repr(found).encode("utf-8", "surrogateescape")).hexdigest() if found else None


def _seen(entry: os.DirEntry[str]) -> tuple[str, int, int]:
    try:
        found = entry.stat()
    except OSError:  # a link to nothing: named when it is read
        return entry.name, -1, -1
    return entry.name, found.st_size, found.st_mtime_ns


@cache
def code_digest() -> str:
    """sha256 of all modules that decide about a crop's bytes; comments and docstrings do not count."""
    waiting, read = [CUTTER], dict[str, str]()
    while waiting:
        name = waiting.pop()
        file = _file_of(name) if name not in read else None
        if file is not None:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            package = package_of(name, file.name == "__init__.py")
            named = (one for found in imports_of(tree, package) for one in found.candidates)
            waiting += [one for one in named if one.startswith(FOLLOWED)]
            read[name] = meaning(tree)
    return digest(sorted(read.items()))


def _file_of(module: str) -> Path | None:
    """None for a name that is no module, but something in one."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def meaning(tree: ast.Module) -> str:
    """The code of a module without its comments, docstrings and layout."""
    for node in ast.walk(tree):
        body: Sequence[ast.stmt] | None = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [one for one in body if not _is_text(one)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
