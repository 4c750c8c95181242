"""The answers of all folds with the scaling that a package carries, fitted on the other folds' patients."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from training.benchmarks.real.figures import StudyResult
from training.data.out_of_fold import Rule, answers_of, read
from training.ensemble.search import cross_calibrated
from training.ensemble.sources import recipe_weights_of, usable
from training.runs import RunFolder


def as_packaged(folder: RunFolder, found: Mapping[str, StudyResult]) -> dict[str, StudyResult]:
    """`found`, of each study by the fold that held it out, with rescaled probabilities.

    Raises SearchError, OutOfFoldError.
    """
    answers, _ = usable(answers_of(read(folder.out_of_fold(fold) for fold in range(folder.recipe.folds))))
    own = recipe_weights_of(folder.recipe).ensemble(answers)
    rule = Rule(folder.recipe.average, json.loads(folder.priors.read_text()))
    rows = dict(zip(answers.studies, cross_calibrated(own, answers, rule).tolist(), strict=True))
    return {study: replace(one, rows=tuple(map(tuple, rows[study]))) for study, one in found.items()}
