"""What an ensemble search finds, as ensemble.json holds it and as tables of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernels.lumbar.labels import GROUPS
from kernels.text import aligned
from training.ensemble.search import CurvePoint
from training.ensemble.strategies import RECIPE, SUBSET, TITLES, Strategies
from training.ensemble.try_stackers import StackerScore
from training.evaluation.intervals import FIGURES, Difference, Interval
from training.evaluation.ties import SAME

WRITTEN = "the ensemble written"
SINGLE = "best member of each condition, by hindsight"
PARTS = ("spinal", "foram.", "subar.")


@dataclass(frozen=True)
class MemberScore:
    """One member alone; `scores` count the prior where it does not answer."""

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
    """How the ensemble was made (strategies.py): the plainest way, in the budget, that no freer one clearly beats."""
    reason: str
    """Why, as a sentence."""
    average: str
    studies: int
    weights: dict[str, dict[str, float]]
    """ "located/member" → condition group → weight; those of a group sum to 1."""
    multipliers: dict[str, list[float]]
    temperatures: dict[str, float]
    """Condition group → what the logits of the averaged probabilities are divided by."""
    left_to_priors: list[str]
    """Condition groups that no member answers better than the priors, so that none has a weight."""
    order: list[str]
    curve: list[CurvePoint]
    """After each member of `order`: seconds a study and the score on the rows that the weights were fitted on."""
    unit: str
    """Of all costs: seconds, or networks where seconds were not measured."""
    seconds: float
    budget: float | None
    scores: dict[str, dict[str, Interval]]
    """cross_fitted: expected score of the ensemble written.
    Then each way, cross-fitted with all its choices; best_single, picked for each group with hindsight, so that no gain
    over it is overestimated; each recipe with its own weights, "recipe <name>"."""
    costs: dict[str, float]
    """Seconds a study of what `scores` names; above `budget` it could not be taken."""
    against: dict[str, Difference]
    """The ensemble written, cross-fitted, less each of `scores` that differs: negative is a gain."""
    fitted_score: float
    """On the rows that it was fitted on: optimistic, unless nothing was fitted."""
    best_single: dict[str, str]
    members: dict[str, MemberScore]
    unshippable: dict[str, str] = field(default_factory=dict)
    """Members from elsewhere that cannot be packaged, with the reason."""
    stackers: dict[str, StackerScore] = field(default_factory=dict)
    """Kinds that were tried on top of the ensemble written; `scores` are those of the mixture alone."""
    stacker: dict[str, Any] | None = None
    """The one taken (kernels.lumbar.manifest.Stacker), its models "located/member"; None: the mixture is all."""


def reason_of(
    chosen: str,
    recipe: str,
    scores: Mapping[str, Mapping[str, Interval]],
    ways: Strategies,
    second: str,
    gain: Difference | None,
) -> str:
    """Why this way was taken, as a sentence.

    `second`: the lowest of the others that answer otherwise, within the budget; `gain`: this way less that, at the
    level of all of them; None: there is no other.
    """
    name = f"{TITLES[chosen]} ({recipe})" if chosen == RECIPE and recipe else TITLES[chosen]
    told = f"{name}: cross-fitted {scores[chosen]['final'].value:.4f}"
    within = " within the budget" if ways.over_budget else ""
    if gain is None:
        return f"{told}, and no other way{within} answers otherwise"
    other = (
        f"{TITLES[second]} with {scores[second]['final'].value:.4f} "
        f"(this less that: {gain.text}, {100 * ways.level():.3g} %)"
    )
    if gain.value <= 0:
        return f"{told}, which no other way{within} is below; the next is {other}"
    return f"{told}; no freer way{within} beats it for sure; the lowest is {other}"


def table_of(result: SearchResult) -> str:
    """Scores of each way, each member alone by condition, and the run order with its weights, as text."""
    stackers = ["", *_stackers(result)] if result.stackers else []
    return "\n".join([*_scores(result), *stackers, "", *_members(result), "", *_order(result)])


def _stackers(result: SearchResult) -> list[str]:
    rows = [
        ["stackers on the ensemble written", *PARTS, "any s.", "mean", "less the mixture [95 %]", "shuffled labels"]
    ]
    for name, one in result.stackers.items():
        values = [f"{one.scores[part].value:.4f}" for part in FIGURES]
        rows.append([f"{name}: {one.verdict}", *values, _gain(one.against["final"]), _gain(one.control)])
    taken = next((name for name, one in result.stackers.items() if one.is_taken), None)
    last = f"taken: {taken}" if taken else "none is taken: the mixture is written as it is"
    return [*aligned(rows), f"{last}; with shuffled labels: less constant answers, which it must not beat"]


def _scores(result: SearchResult) -> list[str]:
    heading = f"out-of-fold score, {result.studies} studies"
    rows = [[heading, *PARTS, "any s.", "mean", "[95 %]", result.unit, f"{WRITTEN} less this [95 %]"]]
    titles = {"cross_fitted": WRITTEN, "best_single": SINGLE} | TITLES
    for name, its in result.scores.items():
        cost = result.costs[name]
        gain = _gain(result.against[name]) if name in result.against else ""
        over = " over the budget" if result.budget is not None and cost > result.budget else ""
        values = [f"{its[part].value:.4f}" for part in FIGURES]
        title = titles.get(name, f"{name} with its own weights")
        rows.append([title, *values, _bounds(its["final"]), f"{cost:{len(result.unit)}.2f}", gain + over])
    fitted = f"on the rows it was fitted on it scores {result.fitted_score:.4f}"
    return [*aligned(rows), f"written: {result.reason}", fitted]


def _members(result: SearchResult) -> list[str]:
    """By condition, each member that grades it, the best first."""
    rows = []
    for group in GROUPS:
        graders = [name for name, one in result.members.items() if group in one.against_best]
        graders.sort(key=lambda name: result.members[name].scores[group].value)
        is_spinal = group == "spinal"
        title = f"{group}: each member that grades it, alone"
        rows.append([title, "loss", "[95 %]", "any s." if is_spinal else "", "less the best [95 %]"])
        for name in graders:
            member = result.members[name]
            own, severe = member.scores[group], member.scores["any_severe"].value
            gain = "best" if name == graders[0] else _gain(member.against_best[group])
            rows.append([name, f"{own.value:.4f}", _bounds(own), f"{severe:.4f}" if is_spinal else "", gain])
    return aligned(rows)


def _order(result: SearchResult) -> list[str]:
    rows = [["run order and weights", *PARTS, result.unit, "score so far, on its own rows"]]
    for point in result.curve:
        weights = [f"{result.weights[point.member][group]:.3f}" for group in GROUPS]
        rows.append([point.member, *weights, f"{point.seconds:{len(result.unit)}.2f}", f"{point.score:.4f}"])
    if any(value != 1 for values in result.multipliers.values() for value in values):
        for group, values in result.multipliers.items():
            rows.append([f"class multipliers, {group}", *(f"{value:.3f}" for value in values)])
    if any(value != 1 for value in result.temperatures.values()):
        rows.append(["temperatures", *(f"{value:.3f}" for value in result.temperatures.values())])
    lines = aligned(rows)
    lowest = min(result.curve, key=lambda point: point.score)
    if result.curve[-1].score > lowest.score + SAME and result.strategy != SUBSET:
        best = result.scores[SUBSET]["final"].value
        lines.append(
            f"after {lowest.member} the score rises, but only on these rows, by which the order was chosen: "
            f"cross-fitted, the best part of all scores {best:.4f}"
        )
    if result.left_to_priors:
        lines.append(f"no member answers {', '.join(result.left_to_priors)} better than the priors, which are used")
    return lines


def _bounds(value: Interval) -> str:
    return f"[{value.low:.4f}, {value.high:.4f}]"


def _gain(gain: Difference) -> str:
    return f"{gain.text} {gain.verdict}"
