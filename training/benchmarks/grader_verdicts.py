"""What graders.py says in words: whether mixtures beat the best system, and whether its score was foretold.

Two scores of different studies are compared by drawing both sets with replacement, each for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.benchmarks.grader_answers import OWN
from training.benchmarks.grader_tables import FOUND, FREELY, OUT_OF_FOLD, SIDE_BY_SIDE, TITLES, Row
from training.evaluation import intervals
from training.evaluation.intervals import Difference, difference

MIXTURES = (FOUND, FREELY, SIDE_BY_SIDE)
WIDTH = max(map(len, MIXTURES))


@dataclass(frozen=True)
class Scored:
    """Labels (N, 25), negative = missing, and probabilities (N, 25, 3) of the same studies."""

    labels: np.ndarray
    rows: np.ndarray


def unpaired(new: Scored, old: Scored) -> Difference:
    """The final score of `new` less that of `old`, which are of different studies."""
    return intervals.unpaired((new.labels, new.rows), (old.labels, old.rows))


@dataclass(frozen=True)
class Rival:
    """A recipe that mixtures are held against."""

    name: str
    chosen: str
    """How it was chosen, in words."""


def rivals(rows: Sequence[Row], systems: Sequence[str]) -> list[Rival]:
    """The best recipe as one would choose it, by its out-of-fold score; and the best on the test studies."""
    by_name = {row.name: row for row in rows}
    honest = min(systems, key=lambda name: by_name[name].final(OUT_OF_FOLD))
    hindsight = min(systems, key=lambda name: by_name[name].final(OWN))
    if honest == hindsight:
        return [Rival(honest, "the best recipe, by its out-of-fold score as by hindsight")]
    return [
        Rival(honest, "the best recipe by its out-of-fold score"),
        Rival(hindsight, "the best recipe by hindsight, on these test studies"),
    ]


def gains_over(rival: str, predicted: Mapping[str, Mapping[str, Scored]]) -> dict[str, dict[str, Difference]]:
    """Mixture → by whose landmarks were looked at → it less a recipe, on the same test studies.

    `predicted`: by whose landmarks → row of the table → predictions.
    """
    mixtures = [name for name in MIXTURES if name in next(iter(predicted.values()))]
    return {
        name: {where: difference(its[name].labels, its[name].rows, its[rival].rows) for where, its in predicted.items()}
        for name in mixtures
    }


def gain_lines(rival: Rival, gains: Mapping[str, Mapping[str, Difference]]) -> list[str]:
    """Whether mixtures beat a recipe, in words."""
    lines = [f"less {rival.name}, {rival.chosen} (same test studies, paired; below 0 is better):"]
    for name, by_landmarks in gains.items():
        for where, one in by_landmarks.items():
            lines.append(f"  {name:{WIDTH}} {TITLES[where]:17} {_told(one)}  {_verdict(one)}")
    return lines


def _verdict(one: Difference) -> str:
    if one.low == one.high == 0:
        return "is this very recipe"
    words = {
        "better": "beats it outside of the interval",
        "worse": "is worse, outside of the interval",
        "noise": "does not beat it outside of the interval, in which 0 lies: noise",
    }
    return words[one.verdict]


def foretold_lines(held_out: Scored, test: Scored) -> tuple[list[str], Difference]:
    """Whether the cross-fitted score foretold that of the test studies, in words."""
    one = unpaired(held_out, test)
    agrees = "0 lies inside: no disagreement is seen" if one.low <= 0 <= one.high else "0 lies outside: they disagree"
    width = one.high - one.low
    lines = [
        f"{FOUND}, out of fold (cross-fitted, {len(held_out.labels)} studies) less test ({len(test.labels)} studies, "
        f"{TITLES[OWN]}; unpaired, both sets drawn):",
        f"  {_told(one)}  {agrees}; the interval is {width:.2f} wide: a difference below about {width / 2:.2f} could "
        "not be told from none",
    ]
    return lines, one


def noise_line(rows: Sequence[Row], studies: int) -> str:
    """What chance alone does to a score of so few studies."""
    score = next(row for row in rows if row.name == FOUND).scores[OWN]["final"]
    half = (score.high - score.low) / 2
    return (
        f"on {studies} test studies chance alone moves a score by about ± {half:.2f}: differences between rows below "
        "that are noise, unless a paired interval says otherwise"
    )


def _told(one: Difference) -> str:
    return f"{one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"
