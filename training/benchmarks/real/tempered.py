"""The answers of all folds with the temperature that a package carries, fitted on the other folds' patients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from training.benchmarks.real.figures import StudyResult
from training.data.out_of_fold import Answers, Rule, answers_of, read
from training.ensemble.search import Ensemble, cross_fitted, tempered
from training.ensemble.sources import recipe_weights_of, usable
from training.runs import RunFolder


def cross_tempered(
    folder: RunFolder, found: Mapping[str, StudyResult], priors: Mapping[str, tuple[float, float, float]]
) -> dict[str, StudyResult]:
    """`found`, of each study by the fold that held it out, with rescaled probabilities.

    Raises SearchError, OutOfFoldError.
    """
    answers, _ = usable(answers_of(read(folder.out_of_fold(fold) for fold in range(folder.recipe.folds))))
    own, rule = recipe_weights_of(folder.recipe).ensemble(answers), Rule(folder.recipe.average, priors)

    def fit(part: Answers) -> Ensemble:
        return tempered(own, part, rule)

    rows = dict(zip(answers.studies, cross_fitted(answers, rule, fit).tolist(), strict=True))
    return {study: replace(one, rows=tuple(map(tuple, rows[study]))) for study, one in found.items()}
