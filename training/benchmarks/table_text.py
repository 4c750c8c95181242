"""Tables of measured figures: as aligned text, as JSON, and a few of their figures as Markdown for the README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | None
"""None = was not measured."""
MOST_FIGURES = 20


@dataclass
class Table:
    """What was measured of one thing."""

    key: str
    title: str
    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)
    """What of it belongs in the README: what, and the figure."""

    def text(self) -> str:
        """Title, aligned columns, remarks."""
        lines = [self.title]
        cells = [list(self.columns), *([shown(cell) for cell in row] for row in self.rows)] if self.rows else []
        widths = [max(len(row[place]) for row in cells) for place in range(len(self.columns) if cells else 0)]
        for name, *numbers in cells:
            aligned = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
            lines.append("  ".join([name.ljust(widths[0]), *aligned]))
        return "\n".join([*lines, *self.remarks])

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
            "remarks": self.remarks,
        }


def shown(cell: Cell) -> str:
    """Three digits that count; a dash for what was not measured."""
    if cell is None:
        return "-"
    if not isinstance(cell, float):
        return f"{cell:,}" if isinstance(cell, int) else cell
    if cell == 0 or abs(cell) >= 1e-3:
        return f"{cell:,.0f}" if abs(cell) >= 99.95 else f"{cell:.3g}"
    return f"{cell:.1e}"


def markdown(tables: Sequence[Table]) -> str:
    """The figures of all tables as one Markdown table of two columns."""
    figures = [figure for table in tables for figure in table.figures][:MOST_FIGURES]
    return "\n".join(["| what | measured |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in figures)])
