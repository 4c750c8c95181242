"""Rows of cells as lines of aligned columns, for what commands print."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line per row, each column as wide as its widest cell; rows may end early."""
    widths = [max(map(len, cells)) for cells in zip_longest(*rows, fillvalue="")]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
