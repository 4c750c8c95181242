"""Ways to make an ensemble of the same members, from recipes side by side up to free weights, and their cross-fits.

Few studies flatter what has much to fit, its cross-fitted score included: with three recipes on 32 phantom studies free
weights scored 0.223 cross-fitted and 0.361 on 240 other studies, where side by side had 0.322.  So the plainest way is
taken that none beats outside of a paired interval, which is wider the more ways there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from kernels.lumbar.labels import GROUPS, SEVERITIES
from training.data.out_of_fold import Answers, Average, Rule
from training.ensemble.search import (
    Ensemble,
    MemberCosts,
    SearchError,
    best_ensemble,
    calibrated,
    calibrated_mean,
    check_budget,
    cross_fitted,
    pruned,
    simple_mean,
    subset_within,
)
from training.evaluation.intervals import LEVEL, difference
from training.evaluation.metric import pooled
from training.evaluation.ties import SAME, first_best

FREE, MEAN, CALIBRATED, SUBSET = "free_weights", "simple_mean", "calibrated_mean", "best_subset"
RECIPE, SIDE_BY_SIDE = "best_recipe", "side_by_side"
# As tables and reports name them, the plainest first.  One recipe of several is last: chosen on 32, 80, 160 of 240
# phantom studies it scored 0.362, 0.336, 0.356 on the others, where free weights had 0.325, 0.305, 0.315.
TITLES = {
    SIDE_BY_SIDE: "all recipes side by side",
    MEAN: "simple mean of all",
    CALIBRATED: "simple mean of all, calibrated",
    SUBSET: "best subset",
    FREE: "free weights",
    RECIPE: "best recipe with its own weights",
}

Fit = Callable[[Answers], Ensemble]


@dataclass(frozen=True)
class RecipeWeights:
    """A recipe's graders with the weights and the average of its YAML file."""

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


def side_by_side(answers: Answers, recipes: Sequence[RecipeWeights], average: Average) -> Ensemble:
    """All recipes with equal shares and in each its own weights: what is packaged where no ensemble was searched.

    A recipe's share of a condition group does not depend on how many networks it has for it.
    """
    weights: dict[str, dict[str, float]] = {}
    for recipe in recipes:
        own = shipped(recipe.ensemble(answers), answers)
        for name, its in zip(own.members, own.weights.tolist(), strict=True):
            weights[name] = dict(zip(GROUPS, its, strict=True))
    return RecipeWeights(SIDE_BY_SIDE, weights, average).ensemble(answers)


@dataclass(frozen=True)
class Strategies:
    """Ways that can be fitted to any part of the answers."""

    fits: dict[str, Fit]
    """The plainest first, as in TITLES; a recipe that is alone, which is side by side with none, before all."""
    over_budget: frozenset[str]
    """Those that cost more than the budget: they are scored, but not taken."""
    recipes: tuple[RecipeWeights, ...]
    """Those given, and each member of no recipe as one of its own."""

    def level(self) -> float:
        """Of an interval of the difference between two of these ways, so that one in twenty choices is wrong."""
        return 1 - (1 - LEVEL) / max(len(self.fits) - len(self.over_budget) - 1, 1)


def strategies(
    answers: Answers, rule: Rule, costs: MemberCosts, seconds: float | None, recipes: Sequence[RecipeWeights] = ()
) -> Strategies:
    """What can be made of these members [within `seconds` a study].  Raises SearchError where no member fits."""
    check_budget(answers, costs, seconds)
    limit = math.inf if seconds is None else seconds
    every = (*recipes, *_from_elsewhere(answers, recipes))
    together = side_by_side(answers, every, rule.average)
    own = [one for one in (recipe.ensemble(answers) for recipe in every) if one.members]
    affordable = [one for one in own if costs.of(one.members) <= limit]
    best: dict[str, Fit] = {RECIPE: lambda part: _best([calibrated(one, part, rule) for one in affordable], part, rule)}
    is_alone = len(own) == len(affordable) == 1  # side by side it would be the same
    fits: dict[str, Fit] = {
        **(best if is_alone else {SIDE_BY_SIDE: lambda part: calibrated(together, part, rule)}),
        MEAN: lambda part: simple_mean(part, rule),
        CALIBRATED: lambda part: calibrated_mean(part, rule),
        SUBSET: lambda part: _best_subset(part, rule, costs, limit, together),
        FREE: lambda part: best_ensemble(part, rule, costs, seconds, together),
        **(best if affordable and not is_alone else {}),
    }
    unlimited = {MEAN: answers.members, CALIBRATED: answers.members, SIDE_BY_SIDE: together.members}
    over = frozenset(name for name, members in unlimited.items() if name in fits and costs.of(members) > limit)
    return Strategies(fits, over, every)


def _best_subset(answers: Answers, rule: Rule, costs: MemberCosts, limit: float, together: Ensemble) -> Ensemble:
    """Equally weighted members, chosen by what they are worth after a scaling, and then calibrated."""
    scaling = calibrated(together, answers, rule).scaling
    return calibrated(pruned(answers, rule, subset_within(answers, rule, scaling, costs, limit), costs), answers, rule)


def _from_elsewhere(answers: Answers, recipes: Sequence[RecipeWeights]) -> list[RecipeWeights]:
    """Members of no recipe, each as one of its own."""
    known = {name for recipe in recipes for name in recipe.weights}
    names = [name for name in answers.members if name not in known]
    return [RecipeWeights(name, {name: dict.fromkeys(GROUPS, 1.0)}, "logits") for name in names]


def plainest_best(labels: np.ndarray, mixed: Mapping[str, np.ndarray], level: float = LEVEL) -> str:
    """The way to take, of cross-fitted probabilities by way, the plainest first.

    Of those that score lower than all plainer ones, it is the plainest that no freer one beats outside of their paired
    interval at this level.
    """
    names: list[str] = []
    lowest = math.inf
    for name, rows in mixed.items():
        if (score := pooled(labels, rows).final) < lowest - SAME:
            names.append(name)
            lowest = score

    def is_beaten(place: int) -> bool:
        freer = (mixed[name] for name in names[place + 1 :])
        return any(difference(labels, its, mixed[names[place]], level=level).verdict == "better" for its in freer)

    return next(name for place, name in enumerate(names) if not is_beaten(place))


def _best(ensembles: Sequence[Ensemble], answers: Answers, rule: Rule) -> Ensemble:
    return ensembles[int(first_best([one.loss(answers, rule) for one in ensembles]))]


def shipped(ensemble: Ensemble, answers: Answers) -> Ensemble:
    """The same predictions, with weights that sum to 1 and only of members that have a part in them."""
    weights = ensemble.weights * answers.only(members=ensemble.members).graded_groups()
    used = [name for name, its in zip(ensemble.members, weights, strict=True) if its.any()]
    return replace(ensemble, weights=weights).only(used)


class CrossFit:
    """Ensembles fitted on the other folds' studies, each applied only to studies that it was not fitted on.

    Keeps each fit: the shipped ensemble may be scored and drawn by these alone.
    """

    def __init__(self, answers: Answers, rule: Rule, fit: Fit) -> None:
        """Fits once a part.  Raises SearchError where nothing can be cross-fitted."""
        self._answers, self._rule, self._fit = answers, rule, fit
        self._fitted: dict[tuple[str, ...], Ensemble] = {}
        self.predicted = cross_fitted(answers, rule, self._without)
        """(N, 25, 3) probabilities."""

    def of(self, names: Collection[str]) -> np.ndarray:
        """(N, 25, 3) probabilities of these members alone, with the weights of the whole ensemble."""

        def fit(part: Answers) -> Ensemble:
            whole = self._without(part)
            return whole.only([name for name in whole.members if name in names])

        return cross_fitted(self._answers, self._rule, fit)

    @cached_property
    def unscaled(self) -> np.ndarray:
        """(N, 25, 3) probabilities without temperatures and multipliers."""
        return cross_fitted(self._answers, self._rule, lambda part: self._without(part).unscaled())

    def _without(self, part: Answers) -> Ensemble:
        if part.studies not in self._fitted:
            self._fitted[part.studies] = self._fit(part)
        return self._fitted[part.studies]


def cross_fit(
    answers: Answers,
    rule: Rule,
    costs: MemberCosts,
    seconds: float | None,
    recipes: Sequence[RecipeWeights],
    strategy: str,
) -> CrossFit:
    """Of an ensemble that was searched [within `seconds` a study] and made by a strategy.  Raises SearchError."""
    fits = strategies(answers, rule, costs, seconds, recipes).fits
    if strategy not in fits:
        raise SearchError(f"the ensemble was made as '{strategy}', which these runs do not allow: make ensemble again")
    return CrossFit(answers, rule, fits[strategy])
