"""What an ensemble search finds: the ensemble, and what it and each way of making one is worth."""

from __future__ import annotations

from dataclasses import dataclass

from training.ensemble.parts import EliminationStep
from training.evaluation.intervals import Difference, Interval


@dataclass(frozen=True)
class MemberScore:
    """One member alone; in `scores` the prior stands in for what it does not answer."""

    studies: int
    """How many studies it answers at all."""
    seconds: float
    """Alone, with its localisers."""
    scores: dict[str, Interval]
    against_best: dict[str, Difference]
    """For each condition group that it grades, to the member that is best at it."""


@dataclass(frozen=True)
class SearchResult:
    """What was found, and what it is worth: what ensemble.json holds."""

    strategy: str
    """How the ensemble was made (strategies.py): the way with the lowest cross-fitted score, in the budget."""
    reason: str
    """The same in words."""
    average: str
    studies: int
    weights: dict[str, dict[str, float]]
    """ "located/member" → condition group → weight; those of a group sum to 1."""
    multipliers: dict[str, list[float]]
    left_to_priors: list[str]
    """Condition groups that no member answers better than the priors, so that none has a weight."""
    order: list[str]
    curve: list[EliminationStep]
    """After each member of `order`: seconds a study and the score on the rows that the weights were fitted on."""
    unit: str
    """Of all costs: seconds, or networks where seconds were not measured."""
    seconds: float
    budget: float | None
    scores: dict[str, dict[str, Interval]]
    """cross_fitted: what is to be expected of the ensemble written; as the best of several ways it is a shade too good.
    Then each way, cross-fitted with all its choices; best_single, picked for each group with hindsight, so that no gain
    over it is flattered; each recipe as it stands, "recipe <name>"."""
    costs: dict[str, float]
    """Seconds a study of what `scores` names; above `budget` it could not be taken."""
    against: dict[str, Difference]
    """The ensemble written, cross-fitted, less each of `scores` that differs: negative is a gain."""
    fitted_score: float
    """On the rows that it was fitted on: too good, unless nothing was fitted."""
    best_single: dict[str, str]
    members: dict[str, MemberScore]
