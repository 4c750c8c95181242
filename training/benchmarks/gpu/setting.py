"""What every part is told, and how it says what it found."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kernels.lumbar.run.submission import replace_json
from training.benchmarks.table_text import Table

# Of its seconds a part leaves this share for what it has begun.
RESERVE = 0.15


@dataclass(frozen=True)
class Setting:
    """Where a part works, on what, and how long it may."""

    work: Path
    """Folder for phantom, packages and runs; shared by all parts."""
    device: str
    """cuda or cpu"""
    small: bool
    """Least studies and networks: shows that it runs."""
    foreign: Path | None = None
    """A package that another machine exported, perhaps with another torch."""
    seconds: float = 600.0
    """The part is ended after these."""
    started: float = field(default_factory=time.monotonic)

    @property
    def data(self) -> Path:
        """The phantom, in the competition's layout."""
        return self.work / "data"

    @property
    def package(self) -> Path:
        """The package of all systems."""
        return self.work / "package"

    @property
    def is_late(self) -> bool:
        """Whether nothing new should be begun."""
        return time.monotonic() - self.started > self.seconds * (1 - RESERVE)

    def to_json(self) -> str:
        """For the child's command line."""
        known = {name: value for name, value in asdict(self).items() if name != "started"}
        return json.dumps(known, default=str)

    @classmethod
    def from_json(cls, text: str) -> Setting:
        """As the parent meant it; the clock starts now."""
        known = json.loads(text)
        foreign = known["foreign"]
        return cls(**{**known, "work": Path(known["work"]), "foreign": Path(foreign) if foreign else None})


class Record:
    """What a part has found so far: on disk after every step, so that a part that is ended early has said it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.tables: list[Table] = []
        self.faults: list[str] = []
        """What is not as it must be; such as answers that differ too much."""

    def table(self, title: str, columns: list[str]) -> Table:
        """A new table; rows are added to it, and `save` is called now and then."""
        self.tables.append(Table(title, title, columns))
        return self.tables[-1]

    def check(self, holds: bool, fault: str) -> None:
        """A fault where something does not hold."""
        if not holds:
            self.faults.append(fault)

    def save(self) -> None:
        """Replace the file by what is known."""
        tables = [{**table.record(), "text": table.text()} for table in self.tables]
        known: dict[str, Any] = {"tables": tables, "faults": self.faults}
        replace_json(self._path, known)
