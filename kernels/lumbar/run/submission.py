"""submission.csv: the rows of sample_submission.csv, always complete and valid, replaced atomically."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..labels import ROW_INDEX, SEVERITIES, split_row_ids
from .tables import read_table, table_text

COLUMNS = ("row_id", *SEVERITIES)


class SubmissionError(Exception):
    """A submission that Kaggle would refuse, or an unusable sample_submission.csv."""


class Submission:
    """The table in memory: filled with priors at first, then set study by study."""

    def __init__(self, sample: Path, priors: Mapping[str, tuple[float, float, float]]) -> None:
        self.row_ids = read_row_ids(sample)
        parts = split_row_ids(self.row_ids)
        self.studies = list(dict.fromkeys(study for study, _ in parts))
        self.unknown_rows = [
            row_id for row_id, (_, row) in zip(self.row_ids, parts, strict=True) if row not in ROW_INDEX
        ]
        self._places: dict[str, list[tuple[int, int]]] = {study: [] for study in self.studies}
        self._values = np.full((len(parts), len(SEVERITIES)), 1 / 3)
        for place, (study, row) in enumerate(parts):
            if row in ROW_INDEX:
                self._places[study].append((place, ROW_INDEX[row]))
        self.set_priors(priors)

    def set_priors(self, priors: Mapping[str, tuple[float, float, float]]) -> None:
        """Reset every study to the priors."""
        rows = np.array([priors[row] for row in ROW_INDEX])
        for study in self.studies:
            self.set(study, rows)

    def set(self, study: str, rows: np.ndarray) -> None:
        """Set a study's (25, 3) probabilities, in the order of labels.ROWS."""
        for place, row in self._places[study]:
            self._values[place] = rows[row] / rows[row].sum()

    def write(self, path: Path) -> None:
        """Check the table and replace the file atomically.  Raises SubmissionError (nothing is replaced), OSError."""
        columns = (self.row_ids, *self._values.T.tolist())
        check(dict(zip(COLUMNS, columns, strict=True)), self.row_ids)
        replace_text(path, table_text(COLUMNS, zip(*columns, strict=True)))


class Table(Protocol):
    """Columns by name: a dict of lists, or a DataFrame of pandas."""

    def __iter__(self) -> Iterator[Any]: ...

    def __getitem__(self, name: str, /) -> Any: ...


def check(table: Table, row_ids: list[str]) -> None:
    """Raise SubmissionError unless the ids are these in this order, all finite, not negative, and rows sum to 1.

    Raises ValueError where a cell is no number.
    """
    if tuple(table) != COLUMNS:
        raise SubmissionError(f"the columns are {', '.join(map(str, table))}")
    if list(table["row_id"]) != row_ids:
        raise SubmissionError("row ids are not those of sample_submission.csv, in its order")
    values = np.stack([np.asarray(table[severity], np.float64) for severity in SEVERITIES], axis=1)
    wrong = ~np.isfinite(values).all(1) | (values < 0).any(1) | (np.abs(values.sum(1) - 1) > 1e-9)
    if wrong.any():
        first = row_ids[int(wrong.argmax())]
        raise SubmissionError(f"{int(wrong.sum())} rows are not probabilities, the first is {first}")


def read_row_ids(sample: Path) -> list[str]:
    """The row ids of a sample_submission.csv, in order.  Raises SubmissionError."""
    try:
        row_ids = read_table(sample).get("row_id")
    except (OSError, ValueError) as error:
        raise SubmissionError(f"{sample}: cannot be read: {error}") from error
    if not row_ids or not all(row_ids):
        raise SubmissionError(f"{sample}: has no complete column row_id")
    return [row_id.strip() for row_id in row_ids]


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path that replaces `path` atomically at the end of the block: readers see the old or the new file.

    If the block or the disk fails, the temporary file is removed.  Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()  # on a full disk it would take the space of the next file
        raise


def replace_text(path: Path, text: str) -> None:
    """Replace a text file atomically.  Raises OSError."""
    # File names need not be valid text: other bytes are written as escapes, which JSON reads back.
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def replace_json(path: Path, content: Any) -> None:
    """Write JSON as replace_text does."""
    replace_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
