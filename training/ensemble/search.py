"""Which members to mix, with which weights and scaling, within which seconds, and in which order to run them.

All is fitted to the metric itself, on out-of-fold rows.  What is reported is cross-fitted: everything, the choice of
members included, is fitted on the other folds' studies and then applied to the fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from kernels.lumbar.labels import GROUPS
from training.data.out_of_fold import PLAIN, Answers, Average, Mixture, Rule, Scaling
from training.data.tables import ROW_GROUPS
from training.ensemble.fit_scaling import LEAST_STUDIES, fit_scaling
from training.ensemble.fit_weights import best_alone, fit_weights
from training.evaluation.metric import group_losses
from training.evaluation.ties import SAME, first_best

# A member that lowers the score by less is not worth its seconds.
LEAST_GAIN = 1e-4
PARTS_OF_ONE_FOLD = 5
# Seconds that a member which costs nothing is taken to cost.
TINY = 1e-9


class SearchError(Exception):
    """Answers or a budget that no ensemble can be made of, and why."""


@dataclass(frozen=True)
class MemberCosts:
    """Measured seconds a study; those of localisers are shared by all members that use their landmarks."""

    members: Mapping[str, float]
    """By "located/member"."""
    located: Mapping[str, float]
    needs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Member → whose landmarks it uses, where its name does not say it."""

    @staticmethod
    def equal(names: Sequence[str]) -> MemberCosts:
        """One second for each member, none for landmarks."""
        return MemberCosts(dict.fromkeys(names, 1.0), {name.partition("/")[0]: 0.0 for name in names})

    def of(self, names: Iterable[str]) -> float:
        """Seconds a study of a set of members with the localisers that they need."""
        chosen = tuple(names)
        used = sorted({one for name in chosen for one in self.needs.get(name, (name.partition("/")[0],))})
        return sum(self.members[name] for name in chosen) + sum(self.located[name] for name in used)


@dataclass(frozen=True)
class Ensemble:
    """Members with their weights (M, 3 groups); class multipliers (3 groups, 3) and temperatures (3 groups,) of what
    they average to."""

    members: tuple[str, ...]
    weights: np.ndarray
    multipliers: np.ndarray
    average: Average | None = None
    """None = that of the rule."""
    temperatures: np.ndarray = field(default_factory=lambda: np.ones(len(GROUPS)))

    @property
    def scaling(self) -> Scaling:
        """Multipliers and temperatures."""
        return Scaling(self.multipliers, self.temperatures)

    def rule(self, rule: Rule) -> Rule:
        """The rule, with this ensemble's own way to average."""
        return replace(rule, average=self.average or rule.average)

    def predict(self, answers: Answers, rule: Rule) -> np.ndarray:
        """(N, 25, 3) probabilities for the studies of `answers`, which have these members and maybe more."""
        return Mixture(answers.only(members=self.members), self.rule(rule)).mix(self.weights, self.scaling)

    def loss(self, answers: Answers, rule: Rule) -> float:
        """The final score on these answers; 0 where nothing is labelled."""
        return float(group_losses(answers.labels, self.predict(answers, rule)).sum())

    def of(self, name: str) -> np.ndarray:
        """(3 groups,) weights of a member; 0 for one that it does not have."""
        return self.weights[self.members.index(name)] if name in self.members else np.zeros(len(GROUPS))

    def unscaled(self) -> Ensemble:
        """Without multipliers and temperatures."""
        return replace(self, multipliers=PLAIN.multipliers, temperatures=PLAIN.temperatures)

    def only(self, names: Sequence[str]) -> Ensemble:
        """Of these members, in this order; the weights of each group sum to 1 again."""
        weights = self.weights[[self.members.index(name) for name in names]]
        return replace(self, members=tuple(names), weights=weights / weights.sum(0).clip(TINY))


@dataclass(frozen=True)
class CurvePoint:
    """A point of the curve of score over seconds: the ensemble after one more member has run."""

    member: str
    seconds: float
    score: float


def simple_mean(answers: Answers, rule: Rule) -> Ensemble:
    """Every member with the same weight."""
    return _plain(answers.members, np.ones((len(answers.members), len(GROUPS))))


def calibrated(ensemble: Ensemble, answers: Answers, rule: Rule) -> Ensemble:
    """The same members and weights, with multipliers and temperatures fitted on these answers."""
    own = answers.only(members=ensemble.members)
    scaling = fit_scaling(own, ensemble.rule(rule), ensemble.weights)
    return replace(ensemble, multipliers=scaling.multipliers, temperatures=scaling.temperatures)


def as_tested(ensemble: Ensemble, answers: Answers) -> Ensemble:
    """Without its scaling where all cross-fits of these answers are of too few studies to have one."""
    _, sizes = np.unique(parts_of(answers), return_counts=True)
    return ensemble if len(answers.studies) - sizes.min() >= LEAST_STUDIES else ensemble.unscaled()


def calibrated_mean(answers: Answers, rule: Rule) -> Ensemble:
    """Every member with the same weight, and fitted multipliers and temperatures."""
    return calibrated(simple_mean(answers, rule), answers, rule)


def cross_calibrated(ensemble: Ensemble, answers: Answers, rule: Rule) -> np.ndarray:
    """(N, 25, 3) probabilities of an ensemble as it is packaged, each study's with the scaling of the other folds."""
    return cross_fitted(answers, rule, lambda part: calibrated(ensemble, part, rule))


def best_single(answers: Answers, rule: Rule) -> Ensemble:
    """For each condition group the one member that is best at it."""
    return _plain(answers.members, best_alone(answers, rule))


def best_subset(
    answers: Answers,
    rule: Rule,
    scaling: Scaling = PLAIN,
    costs: MemberCosts | None = None,
    seconds: float = np.inf,
    *,
    per_second: bool = False,
) -> Ensemble:
    """Greedy forward selection of equally weighted members: next is the one that lowers the loss most [per second].

    A member joins in the groups that it improves.  `seconds`: what the set may cost a study.
    """
    costs = costs or MemberCosts.equal(answers.members)
    mixture, weights = Mixture(answers, rule), np.zeros((len(answers.members), len(GROUPS)))
    names: list[str] = []
    while True:
        reached = mixture.sums(weights)
        current = group_losses(answers.labels, mixture.finish(*reached, scaling))
        best: tuple[float, int, np.ndarray] | None = None
        for index, name in enumerate(answers.members):
            cost = costs.of([*names, name])
            if name in names or cost > seconds:
                continue
            with_it = _with(mixture, reached, index, np.ones(len(GROUPS)), scaling)
            gain = current - group_losses(answers.labels, with_it)
            total = float(gain.clip(0).sum())
            merit = total / max(cost - costs.of(names), TINY) if per_second else total
            if total >= LEAST_GAIN and (best is None or merit > best[0] * (1 + SAME)):
                best = merit, index, gain > SAME
        if best is None:
            return _plain(tuple(names), weights[[answers.members.index(name) for name in names]], scaling)
        weights[best[1]] = best[2]
        names.append(answers.members[best[1]])


def check_budget(answers: Answers, costs: MemberCosts, seconds: float | None) -> None:
    """Raises SearchError where no member fits."""
    cheapest = min(costs.of([name]) for name in answers.members)
    if seconds is not None and cheapest > seconds:
        raise SearchError(f"no member fits in {seconds:g} seconds a study: the cheapest needs {cheapest:g}")


def subset_within(answers: Answers, rule: Rule, scaling: Scaling, costs: MemberCosts, seconds: float) -> Ensemble:
    """The best subset; where it costs more than `seconds`, the better of those chosen by gain and by gain a second.

    Ranked by gain per second, many cheap members can displace a better but expensive one; so both are tried.
    """
    free = best_subset(answers, rule, scaling)
    if costs.of(free.members) <= seconds:
        return free
    sets = [best_subset(answers, rule, scaling, costs, seconds, per_second=by) for by in (True, False)]
    return sets[first_best([one.loss(answers, rule) for one in sets])]


def best_ensemble(
    answers: Answers, rule: Rule, costs: MemberCosts, seconds: float | None = None, around: Ensemble | None = None
) -> Ensemble:
    """Fitted weights and scaling of all members without those whose gain does not justify their seconds.

    Where that costs more than `seconds` a study, the same of the best subset that does not.  `around`: the weights
    from which fitted ones depart as far as there are studies to tell; default: the simple mean.  The scaling is fitted
    first, to these, so that members count by what they are worth after it.  Raises SearchError where no member fits.
    """
    check_budget(answers, costs, seconds)
    start = around or simple_mean(answers, rule)
    scaling = calibrated(start, answers, rule).scaling
    whole = _fitted(answers, rule, scaling, costs, start)
    if seconds is None or costs.of(whole.members) <= seconds:
        return whole
    subset = subset_within(answers, rule, scaling, costs, seconds)
    return _fitted(answers.only(members=subset.members), rule, scaling, costs, start) if subset.members else subset


def _fitted(answers: Answers, rule: Rule, scaling: Scaling, costs: MemberCosts, around: Ensemble) -> Ensemble:
    share = np.stack([around.of(name) for name in answers.members])
    # A subset may lack all members of a group that have a weight there.
    share = np.where(share.sum(0) > 0, share, 1.0)
    # A member that answers no row of a group has no weight there, whatever the fit left it with.
    weights = fit_weights(answers, rule, scaling, share / share.sum(0)) * answers.graded_groups()
    weights = weights / weights.sum(0).clip(TINY)
    return pruned(answers, rule, _plain(answers.members, weights, fit_scaling(answers, rule, weights)), costs)


def pruned(answers: Answers, rule: Rule, ensemble: Ensemble, costs: MemberCosts) -> Ensemble:
    """Without the members whose gain does not justify their seconds, in run order.

    Backward elimination removes the member whose removal raises the loss least, while that is less than LEAST_GAIN;
    then those at the end of the run order that raise the loss.
    """
    while True:
        ensemble = _backward_eliminated(answers, rule, ensemble)
        curve = run_order(answers, rule, ensemble, costs)
        lowest = 1 + int(first_best([point.score for point in curve])) if curve else 0
        ensemble = ensemble.only([point.member for point in curve[:lowest]])
        if lowest == len(curve):
            return ensemble


def _backward_eliminated(answers: Answers, rule: Rule, ensemble: Ensemble) -> Ensemble:
    mixture = Mixture(answers.only(members=ensemble.members), ensemble.rule(rule))
    weights, left = ensemble.weights.copy(), list(range(len(ensemble.members)))
    grades = weights > 0

    def losses_without(*removed: int) -> np.ndarray:
        rest = weights.copy()
        rest[list(removed)] = 0
        return group_losses(answers.labels, mixture.mix(rest, ensemble.scaling))

    # Removing a member changes its own groups alone, so other groups need not be mixed again.
    losses, without = losses_without(), {member: losses_without(member) for member in left}
    while left:
        after = {member: np.where(grades[member], without[member], losses) for member in left}
        least = left[first_best([after[member].sum() for member in left])]
        if after[least].sum() - losses.sum() >= LEAST_GAIN:
            break
        weights[least], losses = 0, after[least]
        left.remove(least)
        without |= {member: losses_without(member) for member in left if (grades[member] & grades[least]).any()}
    return ensemble.only([ensemble.members[member] for member in left])


def run_order(answers: Answers, rule: Rule, ensemble: Ensemble, costs: MemberCosts) -> list[CurvePoint]:
    """The members in the order in which the score falls fastest a second, each step greedily.

    Scores are of the ensemble's own weights, renormalised over the members so far, on the rows given.
    """
    chosen = answers.only(members=ensemble.members)
    mixture, curve = Mixture(chosen, ensemble.rule(rule)), list[CurvePoint]()
    weights, left = np.zeros_like(ensemble.weights), list(range(len(ensemble.members)))
    score = float(group_losses(chosen.labels, mixture.mix(weights)).sum())
    while left:
        names, reached = [point.member for point in curve], mixture.sums(weights)
        offers = []
        for index in left:
            name = chosen.members[index]
            mixed = _with(mixture, reached, index, ensemble.weights[index], ensemble.scaling)
            point = CurvePoint(name, costs.of([*names, name]), float(group_losses(chosen.labels, mixed).sum()))
            offers.append(((point.score - score) / max(point.seconds - costs.of(names), TINY), index, point))
        by_second = [offer[0] for offer in offers]
        _, index, point = offers[first_best(by_second, SAME * abs(min(by_second)))]
        weights[index], score = ensemble.weights[index], point.score
        curve.append(point)
        left.remove(index)
    return curve


class Predicts(Protocol):
    """What is fitted to some answers and applied to others: an ensemble, with or without a stacker."""

    def predict(self, answers: Answers, rule: Rule) -> np.ndarray:
        """(N, 25, 3) probabilities for the studies of `answers`."""
        ...


def cross_fitted(answers: Answers, rule: Rule, fit: Callable[[Answers], Predicts]) -> np.ndarray:
    """(N, 25, 3) probabilities, each study's by what `fit` makes of the other folds (of five parts of a lone fold)."""
    parts = parts_of(answers)
    mixed = np.empty((*answers.labels.shape, 3))
    for part in sorted(set(parts.tolist())):
        here = parts == part
        mixed[here] = fit(answers.only(studies=~here)).predict(answers.only(studies=here), rule)
    return mixed


def parts_of(answers: Answers) -> np.ndarray:
    """(N,) the folds, or five parts of a lone fold.  Raises SearchError where there is one study alone."""
    parts = answers.folds
    if len(set(parts.tolist())) < 2:
        parts = np.random.default_rng(0).permutation(len(answers.studies)) % PARTS_OF_ONE_FOLD
    if len(set(parts.tolist())) < 2:
        raise SearchError("one study alone cannot be cross-fitted: train and validate on more")
    return parts


def _plain(members: tuple[str, ...], weights: np.ndarray, scaling: Scaling = PLAIN) -> Ensemble:
    return Ensemble(members, weights, scaling.multipliers, temperatures=scaling.temperatures)


def _with(
    mixture: Mixture,
    reached: tuple[np.ndarray, np.ndarray],
    index: int,
    weights: np.ndarray,
    scaling: Scaling = PLAIN,
) -> np.ndarray:
    """Probabilities after one more member, whose weights (3 groups) are added to the sums reached."""
    shares = weights[ROW_GROUPS][:, None]
    total = reached[0] + shares[..., None] * mixture.values[:, index]
    return mixture.finish(total, reached[1] + shares * mixture.predicted[:, index], scaling)
