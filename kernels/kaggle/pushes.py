"""Recognises a notebook that is on Kaggle already, so that a lost answer or a lost folder costs no second session."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from kernels.build_notebook import METADATA_NAME

from .client import KaggleError, query

# No notebook has more versions.
MOST_VERSIONS = 1 << 14
NOT_THERE = (403, 404)


def url_of(ref: str) -> str:
    """The notebook's page."""
    return f"https://www.kaggle.com/code/{ref}"


def recognise(folder: Path, ref: str, after: int = 0) -> int | None:
    """The newest version of a notebook on Kaggle, where that is the one built in `folder` and newer than `after`.

    Compared are the cells' types and sources, and whether a GPU is asked for: Kaggle adds metadata of its own.
    Raises KaggleError.
    """
    with tempfile.TemporaryDirectory(prefix="lumbar_pull_") as scratch:
        try:
            query("kernels", "pull", ref, "-p", scratch, "-m")
        except KaggleError as error:
            if error.status in NOT_THERE:
                return None
            raise
        if not is_same(folder, Path(scratch)):
            return None
    newest = newest_version(ref, max(after, 1))
    return newest if newest > after else None


def is_same(ours: Path, pulled: Path) -> bool:
    """Whether two folders hold the same notebook for the same kind of machine."""
    try:
        mine, theirs = (json.loads((folder / METADATA_NAME).read_text()) for folder in (ours, pulled))
        (notebook,) = pulled.glob("*.ipynb")
        same_cells = cells(ours / mine["code_file"]) == cells(notebook)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    gpu = theirs.get("enable_gpu")
    return same_cells and (not isinstance(gpu, bool) or gpu == mine["enable_gpu"])


def cells(notebook: Path) -> list[tuple[str, str]]:
    """Type and source of each cell.  Raises OSError, ValueError, KeyError, TypeError."""
    document: dict[str, Any] = json.loads(notebook.read_text(encoding="utf-8"))
    return [(str(cell["cell_type"]), "".join(cell["source"]).rstrip()) for cell in document["cells"]]


def newest_version(ref: str, known: int) -> int:
    """The number of a notebook's newest version, of which `known` is one.  Raises KaggleError.

    The client prints it nowhere, so versions are asked for: in doubling steps, then by halves.
    """
    step = 1
    while has_version(ref, known + step):
        known, step = known + step, 2 * step
        if known > MOST_VERSIONS:
            raise KaggleError(
                f"Kaggle has this very notebook, but does not tell its version: see {url_of(ref)}; AGAIN=1 pushes again"
            )
    while step > 1:
        step //= 2
        if has_version(ref, known + step):
            known += step
    return known


def has_version(ref: str, version: int) -> bool:
    """Whether a notebook has this version.  Raises KaggleError."""
    try:
        query("kernels", "status", f"{ref}/{version}")
    except KaggleError as error:
        if error.status in NOT_THERE:
            return False
        raise
    return True
