"""What the report scores and draws: each study as the ensemble, the recipes and the priors predict it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.ensemble.search import EliminationStep, run_order
from training.ensemble.strategies import CrossFit, cross_fit
from training.evaluation.metric import pooled
from training.report.finished_runs import ReportSources


@dataclass(frozen=True)
class Predicted:
    """The sources, and what follows from them for every study."""

    sources: ReportSources
    data: Path | None
    ensemble: np.ndarray
    """(N, 25, 3) probabilities, of each study by weights that were fitted on others."""
    priors: np.ndarray
    """(N, 25, 3)"""
    systems: dict[str, np.ndarray]
    """Recipe → (N, 25, 3)."""
    steps: list[EliminationStep]
    """The ensemble's members in their order, with the seconds and the (cross-fitted) score after each."""

    @property
    def labels(self) -> np.ndarray:
        """(N, 25), negative = missing."""
        return self.sources.answers.labels

    @property
    def mixture(self) -> str:
        """What stands for the ensemble, in words."""
        return "the ensemble" if self.sources.found else "the simple mean of all members"


def predicted_from(sources: ReportSources, data: Path | None) -> Predicted:
    """Predict every study by the ensemble, by each recipe and by the priors."""
    answers = sources.answers
    systems = {}
    for run in sources.runs:
        ensemble, rule = sources.system(run)
        systems[run.name] = ensemble.predict(answers, rule)
    priors = np.tile(sources.rule.prior_rows(), (len(answers.studies), 1, 1))
    if sources.found is None:
        steps = run_order(answers, sources.rule, sources.ensemble, sources.costs)
        return Predicted(sources, data, sources.ensemble.predict(answers, sources.rule), priors, systems, steps)
    honest = cross_fit(
        answers, sources.rule, sources.costs, sources.found.budget, sources.standing, sources.found.strategy
    )
    steps = _steps(sources, honest, sources.found.order)
    return Predicted(sources, data, honest.predicted, priors, systems, steps)


def _steps(sources: ReportSources, honest: CrossFit, order: Sequence[str]) -> list[EliminationStep]:
    ran = [order[: count + 1] for count in range(len(order))]
    return [
        EliminationStep(names[-1], sources.costs.of(names), pooled(sources.answers.labels, honest.of(names)).final)
        for names in ran
    ]
