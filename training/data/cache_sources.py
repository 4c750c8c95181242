"""What a crop cache depends on, as one digest: tables, image files, and the code that reads and cuts them."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2

from training.data.tables import Tables
from training.runs import digest

# What cuts a study's crops, and the packages in which its imports are followed.
CUTTER, FOLLOWED = "training.data.decode", ("kernels.lumbar.", "training.data.")
# Network file systems answer slowly, and many questions at once.
LISTING_THREADS = 16


@dataclass(frozen=True)
class Sources:
    """What the crops of a data set are made of."""

    digest: str
    series: int
    """Series in the tables."""
    missing: tuple[str, ...]
    """<study>/<series> of those that have no file."""


def sources_of(root: Path, tables: Tables) -> Sources:
    """Look at every file of every series of the tables, without reading it.

    A file that was replaced, added or removed changes the digest, by its name, size or time of change; a copy of the
    data that does not keep the times counts as other data.
    """
    names = [f"{study}/{series}" for study in tables.labels.index for series, _ in tables.series.get(study, [])]
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        listed = list(pool.map(lambda name: _listing(root / "train_images" / name), names))
    missing = tuple(name for name, found in zip(names, listed, strict=True) if found is None)
    return Sources(digest(tables.fingerprint, names, listed, code_digest(), cv2.__version__), len(names), missing)


def _listing(folder: Path) -> str | None:
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
            waiting += [one for one in _imports(tree, name) if one.startswith(FOLLOWED)]
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


def _imports(tree: ast.Module, name: str) -> Iterator[str]:
    """Absolute names of what a module imports, and of what could be modules in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
