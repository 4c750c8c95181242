"""The table of bench_grade."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluation.intervals import Interval

PARTS = ("spinal", "foraminal", "subarticular", "any_severe")
OUT_OF_FOLD = "out_of_fold"
TITLES = {
    OUT_OF_FOLD: "out of fold",
    "own": "own landmarks",
    "together": "agreed landmarks",
    "truth": "true landmarks",
}


@dataclass(frozen=True)
class Row:
    """A grader, a system or an ensemble."""

    name: str
    groups: tuple[str, ...]
    """The condition groups it is for: others are not shown."""
    seconds: float
    """A study, with its localisers."""
    scores: dict[str, dict[str, Interval]]
    """out_of_fold, own, together or truth → part of the metric → interval over studies."""

    def final(self, where: str) -> float:
        """The mean of the four parts."""
        return self.scores[where]["final"].value


def table_of(rows: Sequence[Row]) -> str:
    """The parts out of fold; the means with half of their intervals, out of fold and on the test studies; seconds."""
    width = max(len(row.name) for row in rows)
    heading = f"{'phantom score':{width}}  spinal foram. subart. any s. "
    heading += " ".join(f"{title:>17}" for title in TITLES.values()) + "   s a study"
    under = f"{'':{width}}  {'out of fold':27} {'mean':>17} " + f"{'mean of the test studies at':^53}"
    lines = [under.rstrip(), heading]
    for row in rows:
        shown = [part for part in PARTS if part in row.groups or (part == "any_severe" and "spinal" in row.groups)]
        parts = [row.scores["out_of_fold"][part].value if part in shown else math.nan for part in PARTS]
        means = [row.scores[where]["final"] if len(row.groups) > 1 else None for where in TITLES]
        lines.append(
            f"{row.name:{width}}  "
            + " ".join(f"{value:6.4f}" if math.isfinite(value) else f"{'–':>6}" for value in parts)
            + "  "
            + " ".join(f"{_mean(one):>17}" for one in means)
            + f"   {row.seconds:6.2f}"
        )
    return "\n".join(lines)


def _mean(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    half = (interval.high - interval.low) / 2
    return f"{interval.value:.4f} ± {half:.3f}"


def finite(content: Any) -> Any:
    """The same with null for what JSON cannot hold."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
