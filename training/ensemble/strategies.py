"""Ways to make an ensemble of the same members, from free weights down to one recipe as it stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kernels.lumbar.labels import GROUPS, SEVERITIES
from training.data.out_of_fold import Answers, Average, Rule
from training.ensemble.search import (
    Ensemble,
    MemberCosts,
    best_ensemble,
    calibrated_mean,
    check_budget,
    lean,
    simple_mean,
    subset_within,
)

FREE, MEAN, CALIBRATED, SUBSET = "free_weights", "simple_mean", "calibrated_mean", "best_subset"
RECIPE, SIDE_BY_SIDE = "best_recipe", "side_by_side"
# In words, for people.
TITLES = {
    FREE: "free weights",
    MEAN: "simple mean of all",
    CALIBRATED: "simple mean of all, calibrated",
    RECIPE: "best recipe as it stands",
    SUBSET: "best subset",
    SIDE_BY_SIDE: "all recipes side by side",
}

Fit = Callable[[Answers], Ensemble]


@dataclass(frozen=True)
class Standing:
    """A recipe as it stands: its graders with its own weights, averaged its own way."""

    name: str
    weights: Mapping[str, Mapping[str, float]]
    """ "located/member" → condition group → weight."""
    average: Average

    def ensemble(self, answers: Answers) -> Ensemble:
        """Its members among these answers."""
        names = tuple(name for name in answers.members if name in self.weights)
        weights = [[self.weights[name].get(group, 0.0) for group in GROUPS] for name in names]
        plain = np.ones((len(GROUPS), len(SEVERITIES)))
        return Ensemble(names, np.array(weights, np.float64).reshape(-1, len(GROUPS)), plain, self.average)


def side_by_side(answers: Answers, standing: Sequence[Standing], average: Average) -> Ensemble:
    """All recipes with their own weights, which is what is packaged where no ensemble was searched."""
    weights: dict[str, Mapping[str, float]] = {}
    for one in standing:
        weights |= one.weights
    return Standing(SIDE_BY_SIDE, weights, average).ensemble(answers)


@dataclass(frozen=True)
class Strategies:
    """Ways that can be fitted to any part of the answers."""

    fits: dict[str, Fit]
    """Of two that score the same, the first is taken."""
    too_dear: frozenset[str]
    """Those that cost more than the budget: what they score is told, but they are not taken."""


def strategies(
    answers: Answers, rule: Rule, costs: MemberCosts, seconds: float | None, standing: Sequence[Standing] = ()
) -> Strategies:
    """What can be made of these members [within `seconds` a study].  Raises SearchError where no member fits."""
    check_budget(answers, costs, seconds)
    limit = math.inf if seconds is None else seconds
    fits: dict[str, Fit] = {
        FREE: lambda part: best_ensemble(part, rule, costs, seconds),
        SUBSET: lambda part: lean(part, rule, subset_within(part, rule, None, costs, limit), costs),
        MEAN: lambda part: simple_mean(part, rule),
        CALIBRATED: lambda part: calibrated_mean(part, rule),
    }
    own = [one.ensemble(answers) for one in standing]
    own = [one for one in own if one.members]
    if affordable := [one for one in own if costs.of(one.members) <= limit]:
        fits[RECIPE] = lambda part: min(affordable, key=lambda one: one.loss(part, rule))
    together = side_by_side(answers, standing, rule.average)
    if len(own) > 1:
        fits[SIDE_BY_SIDE] = lambda part: together
    dear = {MEAN: answers.members, CALIBRATED: answers.members, SIDE_BY_SIDE: together.members}
    return Strategies(fits, frozenset(name for name, members in dear.items() if costs.of(members) > limit))


def shipped(ensemble: Ensemble, answers: Answers) -> Ensemble:
    """The same predictions, with weights that sum to 1 and only of members that have a part in them."""
    weights = ensemble.weights * answers.only(members=ensemble.members).speaks()
    used = [name for name, its in zip(ensemble.members, weights, strict=True) if its.any()]
    return replace(ensemble, weights=weights).only(used)
