"""Which members to mix, with which weights and class multipliers, within which seconds, and in which order to run them.

All is fitted to the metric itself, on out-of-fold rows.  What is reported is cross-fitted: everything, the choice of
members included, is fitted on the other folds' studies and then applied to the fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from kernels.lumbar.labels import GROUPS
from training.evaluation.metric import ROW_GROUPS, group_losses, slopes
from training.evaluation.out_of_fold import Answers, Mixture, Rule

# What one member alone costs more than the simple mean, over the number of studies: few studies keep near the mean.
# With 22 graders on 48 phantom studies the cross-fitted score was 0.277 at 1, 0.272 at 10, 0.269 at 30.
PULL = 10.0
# The same of multipliers, which are few: a factor e.
MULTIPLIER_PULL = 1.0
# Weights below this share are tried without.
SMALL = 1e-3
MULTIPLIER_BOUNDS = (0.2, 6.0)
# A member that lowers the score by less is not worth its seconds.
LEAST_GAIN = 1e-4
# Seconds that a member which costs nothing is taken to cost.
TINY = 1e-9
PARTS_OF_ONE_FOLD = 5


class SearchError(Exception):
    """Answers or a budget that no ensemble can be made of, and why."""


@dataclass(frozen=True)
class Costs:
    """Measured seconds a study; those of localisers are shared by all members that use their landmarks."""

    members: Mapping[str, float]
    """By "located/member"."""
    located: Mapping[str, float]

    @staticmethod
    def equal(names: Sequence[str]) -> Costs:
        """One second for each member, none for landmarks."""
        return Costs(dict.fromkeys(names, 1.0), {name.partition("/")[0]: 0.0 for name in names})

    def of(self, names: Iterable[str]) -> float:
        """Seconds a study of a set of members with the localisers that they need."""
        chosen = tuple(names)
        used = sorted({name.partition("/")[0] for name in chosen})
        return sum(self.members[name] for name in chosen) + sum(self.located[name] for name in used)


@dataclass(frozen=True)
class Ensemble:
    """Members with their weights (M, 3 groups), and class multipliers (3 groups, 3) of what they average to."""

    members: tuple[str, ...]
    weights: np.ndarray
    multipliers: np.ndarray

    def predict(self, answers: Answers, rule: Rule) -> np.ndarray:
        """(N, 25, 3) probabilities for the studies of `answers`, which have these members and maybe more."""
        return Mixture(answers.only(members=self.members), rule).mix(self.weights, self.multipliers)


@dataclass(frozen=True)
class Step:
    """The ensemble after one more member has run."""

    member: str
    seconds: float
    score: float


def fit_weights(answers: Answers, rule: Rule, multipliers: np.ndarray | None = None) -> np.ndarray:
    """(M, 3 groups) weights, each column summing to 1, that minimise the metric; never worse than the simple mean.

    `multipliers`: those of the classes (3 groups, 3) that the mean will be given.  A light pull towards the simple
    mean fades with the number of studies.
    """
    count, labels = len(answers.members), answers.labels
    simple = np.full((count, len(GROUPS)), 1 / max(count, 1))
    if count < 2:
        return simple
    mixture, pull = Mixture(answers, rule), PULL / len(answers.studies) * count / (count - 1)

    def costs(weights: np.ndarray) -> np.ndarray:
        return group_losses(labels, mixture.mix(weights, multipliers)) + pull * ((weights - simple) ** 2).sum(0)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(simple.shape)
        by_probability = slopes(labels, mixture.mix(weights, multipliers))
        by_weight = mixture.slopes(weights, by_probability, multipliers) + 2 * pull * (weights - simple)
        return float(costs(weights).sum()), by_weight.ravel()

    alone = best_single(answers, rule, multipliers).weights
    candidates = [simple, alone]
    for start in (simple, 0.9 * alone + 0.1 * simple):
        found = _minimised(objective, start, (1e-6, None))
        weights = found / found.sum(0)
        few = np.where(weights < SMALL, 0, weights)
        candidates += [few / few.sum(0), weights]
    # Rounded, so that of equals the simpler one, which stands first, is taken.
    best = np.round([costs(weights) for weights in candidates], 7).argmin(0)
    return np.stack([candidates[index][:, group] for group, index in enumerate(best)], -1)


def fit_multipliers(answers: Answers, rule: Rule, weights: np.ndarray) -> np.ndarray:
    """(3 groups, 3) class multipliers of the averaged probabilities, the first 1; never worse than none.

    They undo, for one, a training without the metric's weights.  Rows that kept the prior are left as they are.
    """
    mixture, labels = Mixture(answers, rule), answers.labels
    sums, pull = mixture.sums(weights), MULTIPLIER_PULL / len(answers.studies)
    answered = (sums[1] > 0).T[..., None]

    def of(logs: np.ndarray) -> np.ndarray:
        return np.exp(np.column_stack([np.zeros(len(GROUPS)), logs.reshape(-1, 2)]))

    def objective(logs: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = mixture.finish(*sums, of(logs))
        by_probability = slopes(labels, mixed)
        by_log = answered * mixed * (by_probability - (by_probability * mixed).sum(-1, keepdims=True))
        by_group = np.stack([by_log[:, ROW_GROUPS == group].sum((0, 1)) for group in range(len(GROUPS))])
        value = group_losses(labels, mixed).sum() + pull * (logs**2).sum()
        return float(value), by_group[:, 1:].ravel() + 2 * pull * logs

    low, high = np.log(MULTIPLIER_BOUNDS)
    fitted = of(_minimised(objective, np.zeros((len(GROUPS), 2)), (low, high)))
    none = np.ones_like(fitted)
    with_them, without = (group_losses(labels, mixture.finish(*sums, its)) for its in (fitted, none))
    return np.where((with_them < without)[:, None], fitted, none)


def simple_mean(answers: Answers, rule: Rule) -> Ensemble:
    """Every member with the same weight."""
    return _plain(answers.members, np.ones((len(answers.members), len(GROUPS))))


def calibrated_mean(answers: Answers, rule: Rule) -> Ensemble:
    """Every member with the same weight, and fitted multipliers."""
    plain = simple_mean(answers, rule)
    return _plain(plain.members, plain.weights, fit_multipliers(answers, rule, plain.weights))


def best_single(answers: Answers, rule: Rule, multipliers: np.ndarray | None = None) -> Ensemble:
    """For each condition group the one member that is best at it."""
    mixture, weights = Mixture(answers, rule), np.zeros((len(answers.members), len(GROUPS)))
    alone = np.eye(len(weights))[..., None] * np.ones(len(GROUPS))
    scores = np.array([group_losses(answers.labels, mixture.mix(one, multipliers)) for one in alone])
    weights[scores.argmin(0), range(len(GROUPS))] = 1
    return _plain(answers.members, weights, multipliers)


def best_subset(
    answers: Answers,
    rule: Rule,
    multipliers: np.ndarray | None = None,
    costs: Costs | None = None,
    seconds: float = np.inf,
    *,
    per_second: bool = False,
) -> Ensemble:
    """Greedy forward selection of equally weighted members: next is whoever lowers the score most [per second].

    A member joins in the groups that it improves.  `seconds`: what the set may cost a study.
    """
    costs = costs or Costs.equal(answers.members)
    mixture, weights = Mixture(answers, rule), np.zeros((len(answers.members), len(GROUPS)))
    names: list[str] = []
    while True:
        reached = mixture.sums(weights)
        current = group_losses(answers.labels, mixture.finish(*reached, multipliers))
        best: tuple[float, int, np.ndarray] | None = None
        for index, name in enumerate(answers.members):
            cost = costs.of([*names, name])
            if name in names or cost > seconds:
                continue
            with_it = _with(mixture, reached, index, np.ones(len(GROUPS)), multipliers)
            gain = current - group_losses(answers.labels, with_it)
            total = float(gain.clip(0).sum())
            merit = total / max(cost - costs.of(names), TINY) if per_second else total
            if total >= LEAST_GAIN and (best is None or merit > best[0]):
                best = merit, index, gain > 0
        if best is None:
            return _plain(tuple(names), weights[[answers.members.index(name) for name in names]], multipliers)
        weights[best[1]] = best[2]
        names.append(answers.members[best[1]])


def best_ensemble(answers: Answers, rule: Rule, costs: Costs, seconds: float | None = None) -> Ensemble:
    """Fitted weights and multipliers of all members, or of the best that together cost at most `seconds` a study.

    Multipliers are fitted first, to the simple mean, so that members count by what they are worth after them.
    Raises SearchError where no member fits.
    """
    multipliers = calibrated_mean(answers, rule).multipliers
    chosen = answers
    if seconds is not None:
        cheapest = min(costs.of([name]) for name in answers.members)
        if cheapest > seconds:
            raise SearchError(f"no member fits in {seconds:g} seconds a study: the cheapest needs {cheapest:g}")
        # By gain a second many cheap members may shut out a dear one that is better: both ways are tried.
        sets = [best_subset(answers, rule, multipliers, costs, seconds, per_second=by) for by in (True, False)]
        best = min(sets, key=lambda one: group_losses(answers.labels, one.predict(answers, rule)).sum())
        chosen = answers.only(members=best.members)
    # A member that is silent on a group has no part in it, whatever the fit left it with.
    weights = fit_weights(chosen, rule, multipliers) * chosen.speaks()
    weights = weights / weights.sum(0).clip(TINY)
    used = np.asarray(weights.any(1))
    chosen = chosen.only(members=[name for name, its in zip(chosen.members, used.tolist(), strict=True) if its])
    return Ensemble(chosen.members, weights[used], fit_multipliers(chosen, rule, weights[used]))


def run_order(answers: Answers, rule: Rule, ensemble: Ensemble, costs: Costs) -> list[Step]:
    """The members in the order in which the score falls fastest a second, each step greedily.

    Scores are of the ensemble's own weights, renormalised over the members so far, on the rows given.
    """
    chosen = answers.only(members=ensemble.members)
    mixture, steps, weights = Mixture(chosen, rule), list[Step](), np.zeros_like(ensemble.weights)
    score = float(group_losses(chosen.labels, mixture.mix(weights)).sum())
    while len(steps) < len(chosen.members):
        names, reached = [step.member for step in steps], mixture.sums(weights)
        offers = []
        for index in np.flatnonzero(~weights.any(1)).tolist():
            name = chosen.members[index]
            mixed = _with(mixture, reached, index, ensemble.weights[index], ensemble.multipliers)
            step = Step(name, costs.of([*names, name]), float(group_losses(chosen.labels, mixed).sum()))
            offers.append(((score - step.score) / max(step.seconds - costs.of(names), TINY), index, step))
        _, index, step = max(offers, key=lambda offer: offer[0])
        weights[index], score = ensemble.weights[index], step.score
        steps.append(step)
    return steps


def cross_fitted(answers: Answers, rule: Rule, fit: Callable[[Answers], Ensemble]) -> np.ndarray:
    """(N, 25, 3) probabilities, each study's by what `fit` makes of the other folds (of five parts of a lone fold)."""
    parts = answers.folds
    if len(set(parts.tolist())) < 2:
        parts = np.random.default_rng(0).permutation(len(answers.studies)) % PARTS_OF_ONE_FOLD
    if len(set(parts.tolist())) < 2:
        raise SearchError("one study alone cannot be cross-fitted: train and validate on more")
    mixed = np.empty((*answers.labels.shape, 3))
    for part in sorted(set(parts.tolist())):
        here = parts == part
        mixed[here] = fit(answers.only(studies=~here)).predict(answers.only(studies=here), rule)
    return mixed


def _plain(members: tuple[str, ...], weights: np.ndarray, multipliers: np.ndarray | None = None) -> Ensemble:
    return Ensemble(members, weights, np.ones((len(GROUPS), 3)) if multipliers is None else multipliers)


def _minimised(
    objective: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, bounds: tuple[float, float | None]
) -> np.ndarray:
    options = {"ftol": 1e-7, "maxiter": 100}
    found = minimize(
        objective, start.ravel(), jac=True, method="L-BFGS-B", bounds=[bounds] * start.size, options=options
    )
    return np.asarray(found.x).reshape(start.shape)


def _with(
    mixture: Mixture,
    reached: tuple[np.ndarray, np.ndarray],
    index: int,
    weights: np.ndarray,
    multipliers: np.ndarray | None = None,
) -> np.ndarray:
    """Probabilities after one more member, whose weights (3 groups) are added to the sums reached."""
    shares = weights[ROW_GROUPS][:, None]
    total = reached[0] + shares[..., None] * mixture.voices[:, index]
    return mixture.finish(total, reached[1] + shares * mixture.spoken[:, index], multipliers)
