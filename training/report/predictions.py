"""Out-of-fold predictions of the ensemble, the recipes and the priors, and the scores that the report compares."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kernels.lumbar.labels import GROUPS
from training.data.tables import ROW_GROUPS
from training.ensemble.find import member_scores
from training.ensemble.search import CurvePoint, cross_calibrated, run_order
from training.ensemble.strategies import cross_fit
from training.evaluation.intervals import Difference, Interval, difference, intervals
from training.evaluation.metric import Score, pooled
from training.report.sources import ReportSources

# Scores that look different with four digits.
VISIBLE = 5e-5
# Fits end a little apart on different machines; a cross-fitted score that differs by more is of another search.
SAME_CROSS_FIT = 1e-3


def member_text(name: str) -> str:
    """localiser / member, without the localiser's name in the member's."""
    located, _, member = name.partition("/")
    return f"{located} / {member.removeprefix(f'{located}_')}"


@dataclass(frozen=True)
class SystemScore:
    """A mixture, a recipe or a member."""

    name: str
    scores: Mapping[str, Interval]
    """Part of the metric → interval."""
    seconds: float
    """A study, with localisers."""
    graded: Collection[str]
    """The condition groups that it grades."""

    def shows(self, part: str) -> bool:
        """Whether it grades all that a part of the metric scores."""
        return {"any_severe": {"spinal"}, "final": set(GROUPS)}.get(part, {part}) <= set(self.graded)


@dataclass(frozen=True)
class Predictions:
    """The sources, and what follows from them for every study."""

    sources: ReportSources
    ensemble: np.ndarray
    """(N, 25, 3) probabilities, of each study by weights that were fitted on others."""
    priors: np.ndarray
    """(N, 25, 3)"""
    systems: Mapping[str, np.ndarray]
    """Recipe → (N, 25, 3)."""
    steps: list[CurvePoint]
    """The ensemble's members in their order, with the seconds and the (cross-fitted) score after each."""
    unscaled: np.ndarray
    """(N, 25, 3) of the ensemble without temperatures and multipliers."""
    calibrated: np.ndarray
    """(N, 25, 3) of the ensemble with those that were fitted on other studies."""

    @property
    def labels(self) -> np.ndarray:
        """(N, 25), negative = missing."""
        return self.sources.answers.labels

    @property
    def mixture(self) -> str:
        """Name of what `ensemble` holds."""
        return "the ensemble" if self.sources.searched else "the simple mean of all members"

    @property
    def title(self) -> str:
        """The same, with how its scores were made."""
        return f"{self.mixture} (cross-fitted)" if self.sources.searched else self.mixture

    @property
    def by_name(self) -> dict[str, np.ndarray]:
        """The ensemble, the recipes and the priors."""
        return {self.title: self.ensemble, **self.systems, "level priors": self.priors}

    @cached_property
    def scores(self) -> dict[str, Interval]:
        """Of the ensemble: part of the metric → interval."""
        return intervals(self.labels, self.ensemble)

    @cached_property
    def prior_scores(self) -> dict[str, Interval]:
        """Of the priors."""
        return intervals(self.labels, self.priors)

    @cached_property
    def gain(self) -> Difference:
        """The ensemble's score less the priors'."""
        return difference(self.labels, self.ensemble, self.priors)

    @cached_property
    def best_system(self) -> str:
        """The recipe with the lowest score, where there are any."""
        return min(self.systems, key=lambda name: pooled(self.labels, self.systems[name]).final)

    @property
    def gain_over_best_system(self) -> Difference | None:
        """The ensemble's score less the best recipe's; None where their predictions are the same, or without any."""
        if not self.systems:
            return None
        best = self.systems[self.best_system]
        return None if np.allclose(self.ensemble, best) else difference(self.labels, self.ensemble, best)

    @property
    def calibration_gain(self) -> Difference:
        """The score with temperatures and multipliers less that without."""
        return difference(self.labels, self.calibrated, self.unscaled)

    @property
    def differs_from_file(self) -> bool:
        """Whether the ensemble's file has another cross-fitted score than these predictions."""
        searched, score = self.sources.searched, self.scores["final"].value
        return searched is not None and not abs(searched.scores["cross_fitted"]["final"].value - score) < SAME_CROSS_FIT

    @property
    def differs_from_last_step(self) -> bool:
        """Whether all members of `steps` together score visibly otherwise than the ensemble."""
        return bool(self.steps) and abs(self.steps[-1].score - self.scores["final"].value) > VISIBLE

    def system_scores(self) -> list[SystemScore]:
        """The ensemble, the recipes with their own weights, then all members, the best first."""
        sources, answers, costs = self.sources, self.sources.answers, self.sources.costs
        found = [SystemScore(self.title, self.scores, costs.of(sources.ensemble.members), GROUPS)]
        for run in sources.runs:
            seconds = costs.of(sources.system(run).members)
            found.append(SystemScore(run.name, intervals(self.labels, self.systems[run.name]), seconds, GROUPS))
        for name, one in member_scores(answers, sources.rule, costs).items():
            graded = ~np.isnan(answers.logits[answers.members.index(name)]).all((0, 2))
            groups = {GROUPS[group] for group in ROW_GROUPS[graded]}
            found.append(SystemScore(member_text(name), one.scores, one.seconds, groups))
        return found

    def fold_scores(self) -> dict[str, dict[int, Score]]:
        """Name as in `by_name` → fold → score of its studies."""
        folds = self.sources.answers.folds
        masks = {fold: folds == fold for fold in sorted(set(folds.tolist()))}
        return {
            name: {fold: pooled(self.labels[mask], its[mask]) for fold, mask in masks.items()}
            for name, its in self.by_name.items()
        }


def predict(sources: ReportSources) -> Predictions:
    """Predict every study by the ensemble, by each recipe and by the priors."""
    answers, rule, searched = sources.answers, sources.rule, sources.searched
    systems = {run.name: sources.system(run).predict(answers, rule) for run in sources.runs}
    priors = np.tile(rule.prior_rows(), (len(answers.studies), 1, 1))
    if searched is None:
        whole = sources.ensemble
        mixed, order = whole.predict(answers, rule), run_order(answers, rule, whole, sources.costs)
        several = len(answers.studies) > 1
        changed = cross_calibrated(whole, answers, rule) if several else mixed
        return Predictions(sources, mixed, priors, systems, order, mixed, changed)
    fitted = cross_fit(answers, rule, sources.costs, searched.budget, sources.recipe_weights, searched.strategy)
    steps = []
    for count, name in enumerate(searched.order, 1):
        names = searched.order[:count]
        score = pooled(answers.labels, fitted.of(names)).final
        steps.append(CurvePoint(name, sources.costs.of(names), score))
    return Predictions(sources, fitted.predicted, priors, systems, steps, fitted.unscaled, fitted.predicted)
