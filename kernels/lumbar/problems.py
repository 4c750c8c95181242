"""What went wrong with a study's data: a named record instead of an exception."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """One oddity that was met and worked round."""

    study: str
    """Study id; empty where the problem belongs to no study."""
    where: str
    """What it concerns: "series/file", a series, a table, a network."""
    kind: str
    """A slug to count by, such as "unreadable-file"."""
    detail: str


@dataclass
class Report:
    """Collects the problems of one series."""

    study: str
    series: str
    problems: list[Problem] = field(default_factory=list)

    def add(self, kind: str, detail: str, file: str = "") -> None:
        """Record a problem of the series, or of one of its files."""
        where = f"{self.series}/{file}" if file else self.series
        self.problems.append(Problem(self.study, where, kind, detail))
