"""Tables of measured figures: as aligned text, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernels.lumbar.run.submission import replace_json

Cell = str | int | float | None
"""None = not measured."""


class BenchError(Exception):
    """Nothing to measure, nothing to measure it on, or a measured run that failed."""


@dataclass
class Table:
    """Measurements of one kind: the first column names the row."""

    key: str
    title: str
    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def text(self, markdown: bool = False) -> str:
        """Title, aligned columns, remarks."""
        lines = [f"**{self.title}**\n" if markdown else self.title]
        cells = [list(self.columns), *([formatted(cell) for cell in row] for row in self.rows)] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for name, *numbers in cells:
            aligned = [name.ljust(widths[0])]
            aligned += [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
            lines.append(f"| {' | '.join(aligned)} |" if markdown else "  ".join(aligned))
        if markdown and cells:
            rules = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
            lines.insert(2, f"|{'|'.join(rules)}|")
            lines.append("")
        return "\n".join([*lines, *self.remarks])

    def record(self) -> dict[str, Any]:
        """For JSON."""
        rows = [list(row) for row in self.rows]
        return {"title": self.title, "columns": list(self.columns), "rows": rows, "remarks": self.remarks}


class Record:
    """Tables and faults of a measurement; on disk after every `save`, so that one that times out leaves its results."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.tables: list[Table] = []
        self.faults: list[str] = []
        """Results outside of their limits."""

    def table(self, title: str, columns: Sequence[str]) -> Table:
        """A new table, to which rows are added."""
        self.tables.append(Table(title, title, columns))
        return self.tables[-1]

    def check(self, holds: bool, fault: str) -> None:
        """Note a fault where something does not hold."""
        if not holds:
            self.faults.append(fault)

    def save(self) -> None:
        """Replace the file, if there is one, by the results so far."""
        if self._path is not None:
            tables = [{**table.record(), "text": table.text()} for table in self.tables]
            replace_json(self._path, {"tables": tables, "faults": self.faults})


def formatted(cell: Cell) -> str:
    """Three significant digits; a dash for what was not measured."""
    if cell is None:
        return "-"
    if not isinstance(cell, float):
        return f"{cell:,}" if isinstance(cell, int) else cell
    if cell == 0 or abs(cell) >= 1e-3:
        return f"{cell:,.0f}" if abs(cell) >= 99.95 else f"{cell:.3g}"
    return f"{cell:.1e}"
