"""Find the competition's files under any mount layout, and read which series each study has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..labels import SERIES_KINDS
from ..problems import Problem
from .tables import read_table

MARKERS = ("test_series_descriptions.csv", "sample_submission.csv")
COLUMNS = ("study_id", "series_id", "series_description")
SEARCH_DEPTH = 4
LISTED = 80  # characters of an id in a message


class CompetitionNotFound(Exception):
    """No folder, or more than one, holds the competition's marker files."""


def find_competition(roots: Sequence[Path]) -> Path:
    """The one folder below the roots with the marker files.  Raises CompetitionNotFound, which lists the mounts."""
    found, seen = search_folders(roots, MARKERS)
    if len(found) == 1:
        return found[0]
    listing = ", ".join(str(folder) for folder in (found or seen)[:20]) or "nothing"
    reason = "more than one folder holds" if found else "no folder holds"
    raise CompetitionNotFound(f"{reason} {' and '.join(MARKERS)}; looked at: {listing}")


def search_folders(roots: Sequence[Path], markers: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The folders at or below the roots that hold all marker files, and all folders that were searched.

    Image folders, and folders below a match, are not searched.
    """
    found: list[Path] = []
    seen: list[Path] = []
    level = [root for root in roots if root.is_dir()]
    for _ in range(SEARCH_DEPTH + 1):
        found += [folder for folder in level if all((folder / marker).is_file() for marker in markers)]
        seen += level
        level = [child for folder in level if folder not in found for child in _folders(folder)]
    return found, seen


def _folders(folder: Path) -> list[Path]:
    # Image folders are not searched: they hold thousands of entries and never a marker.
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.endswith("_images"))
    except OSError:  # an unreadable folder is not an attached one
        return []


@dataclass
class SeriesTable:
    """Study id → (series id, kind) of its series, and the problems of the table."""

    series: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_series_table(path: Path) -> SeriesTable:
    """Read a …_series_descriptions.csv; unusable lines are Problems."""
    table = SeriesTable()
    try:
        columns = {name.strip(): cells for name, cells in reversed(read_table(path).items())}
    except (OSError, ValueError) as error:
        table.problems.append(Problem("", path.name, "unreadable-table", str(error)))
        return table
    if missing := set(COLUMNS) - set(columns):
        table.problems.append(Problem("", path.name, "wrong-table", f"missing columns: {', '.join(sorted(missing))}"))
        return table
    rows = [row for row in zip(*(columns[name] for name in COLUMNS), strict=True) if row[0] and row[1]]
    for study, series, description in dict.fromkeys(tuple(cell.strip() for cell in row) for row in rows):
        kind = SERIES_KINDS.get(description)
        if not (names_folder(study) and names_folder(series)):
            detail = f"'{series[:LISTED]}' of study '{study[:LISTED]}' cannot be a folder in its images"
            table.problems.append(Problem(study[:LISTED], path.name, "wrong-id", detail))
        elif kind is None:
            detail = f"series {series} is described as '{description[:LISTED]}': none of {', '.join(SERIES_KINDS)}"
            table.problems.append(Problem(study, path.name, "unknown-series-description", detail))
        else:
            table.series.setdefault(study, []).append((series, kind))
    return table


def names_folder(name: str) -> bool:
    """Whether a name is that of a direct subfolder: no path, not "." or ".."."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")
