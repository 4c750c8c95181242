"""Durations, aligned columns and long lists, for what commands print."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest


def duration_text(seconds: float | None) -> str:
    """42 s, 3 min 05 s, from ten minutes on 12 min, from an hour on 2 h 05; None is unknown."""
    if seconds is None:
        return "unknown"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest_s:02d} s" if minutes else f"{rest_s} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line per row, each column as wide as its widest cell; rows may end early."""
    widths = [max(map(len, cells)) for cells in zip_longest(*rows, fillvalue="")]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def first_of(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more
