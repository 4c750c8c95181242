"""What an ensemble is made of, what it costs, and what it predicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from training.data.out_of_fold import Answers, Average, Mixture, Rule
from training.evaluation.metric import group_losses

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

    @staticmethod
    def equal(names: Sequence[str]) -> MemberCosts:
        """One second for each member, none for landmarks."""
        return MemberCosts(dict.fromkeys(names, 1.0), {name.partition("/")[0]: 0.0 for name in names})

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
    average: Average | None = None
    """None = as the rule says."""

    def rule(self, rule: Rule) -> Rule:
        """The rule, with this ensemble's own way to average."""
        return replace(rule, average=self.average or rule.average)

    def predict(self, answers: Answers, rule: Rule) -> np.ndarray:
        """(N, 25, 3) probabilities for the studies of `answers`, which have these members and maybe more."""
        return Mixture(answers.only(members=self.members), self.rule(rule)).mix(self.weights, self.multipliers)

    def loss(self, answers: Answers, rule: Rule) -> float:
        """The final score on these answers; 0 where nothing is labelled."""
        return float(group_losses(answers.labels, self.predict(answers, rule)).sum())

    def only(self, names: Sequence[str]) -> Ensemble:
        """Of these members, in this order; the weights of each group sum to 1 again."""
        weights = self.weights[[self.members.index(name) for name in names]]
        return replace(self, members=tuple(names), weights=weights / weights.sum(0).clip(TINY))


@dataclass(frozen=True)
class EliminationStep:
    """The ensemble after one more member has run."""

    member: str
    seconds: float
    score: float
