"""CSV tables, read as text and written: without pandas, whose import takes longer than all tables of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

# The csv module's own limit of 131,072 characters would make a table unreadable for one odd cell.
LONGEST_CELL = 2**31 - 1


def read_table(path: Path) -> dict[str, list[str]]:
    """Column name → cells, from a file in UTF-8 with or without a byte order mark.

    Empty lines are left out, a short line is filled with "", of a long one the first cells count, and of columns with
    the same name the first.  Raises OSError; ValueError where the file is empty, no text, or ends within quotes.
    """
    csv.field_size_limit(LONGEST_CELL)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file, strict=True) if line]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if not lines:
        raise ValueError("it is empty")
    names, *rows = lines
    columns: dict[str, list[str]] = {}
    for place, name in enumerate(names):
        columns.setdefault(name, [row[place] if place < len(row) else "" for row in rows])
    return columns


def table_text(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The text of a table: numbers with as many digits as it takes to read the same numbers again."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return written.getvalue()
