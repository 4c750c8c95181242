"""The tables of graders.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kernels.lumbar.labels import GROUPS
from training.benchmarks.grader_answers import AGREED, OWN, TRUE
from training.evaluation.intervals import FIGURES, Interval

OUT_OF_FOLD = "out_of_fold"
SIDE_BY_SIDE, FREELY, FOUND = "all recipes side by side", "free weights of all", "found ensemble"
TITLES = {
    OUT_OF_FOLD: "out of fold",
    OWN: "own landmarks",
    AGREED: "agreed landmarks",
    TRUE: "true landmarks",
}
MEANT = (
    "own landmarks: those of the recipe's own localisers; agreed: where the localisers of all recipes agree; true: the "
    "phantom's.  Out of fold: own landmarks, studies that the fold held out.  A dash: it does not grade this."
)
HEADINGS = ("spinal", "foraminal", "subarticular", "any severe", "mean")


@dataclass(frozen=True)
class Row:
    """A grader, a system or an ensemble."""

    name: str
    groups: tuple[str, ...]
    """The condition groups it is for: others are not shown."""
    seconds: float
    """A study, with its localisers."""
    scores: dict[str, dict[str, Interval]]
    """out_of_fold, own, agreed or true → part of the metric → interval over studies."""

    def final(self, where: str) -> float:
        """The mean of the four parts."""
        return self.scores[where]["final"].value

    def shown(self, where: str) -> list[Interval | None]:
        """The metric's four parts and their mean; None for what it does not grade."""
        told = set(self.groups) | ({"any_severe"} if "spinal" in self.groups else set())
        told |= {"final"} if set(GROUPS) <= told else set()
        return [self.scores[where][part] if part in told else None for part in FIGURES]


def tables_of(rows: Sequence[Row], held_out: int, test: int) -> str:
    """A table of all parts for each set of studies and landmarks, then one of the means side by side."""
    counts = {where: f"{test} test studies" for where in TITLES} | {OUT_OF_FOLD: f"{held_out} held-out studies"}
    parts = [_table_of_parts(rows, f"{TITLES[where]}, {counts[where]}", where) for where in TITLES]
    return "\n\n".join([MEANT, *parts, _table_of_means(rows)])


def _table_of_parts(rows: Sequence[Row], title: str, where: str) -> str:
    width = _width(rows)
    lines = [
        f"{title}: phantom score ± half of its 95 % interval",
        " " * width + "".join(f"{heading:>16}" for heading in HEADINGS),
    ]
    return "\n".join([*lines, *(row.name.ljust(width) + _cells(row.shown(where)) for row in rows)])


def _table_of_means(rows: Sequence[Row]) -> str:
    width = _width(rows)
    heading = "".join(f"{title:>19}" for title in TITLES.values())
    lines = [
        "means of those that grade all conditions, ± half of their 95 % intervals",
        f"{'':{width}}{heading}{'s a study':>12}",
    ]
    for row in rows:
        means = [row.shown(where)[-1] for where in TITLES]
        if means[0] is None:
            continue
        lines.append(row.name.ljust(width) + _cells(means, 19) + f"{row.seconds:12.2f}")
    return "\n".join(lines)


def _width(rows: Sequence[Row]) -> int:
    return max(len(row.name) for row in rows)


def _cells(values: Sequence[Interval | None], width: int = 16) -> str:
    return "".join(f"{_told(one):>{width}}" for one in values)


def _told(interval: Interval | None) -> str:
    if interval is None or not math.isfinite(interval.value):
        return "–"
    half = (interval.high - interval.low) / 2
    return f"{interval.value:.4f} ± {half:.3f}"
