"""Nested out-of-fold answers: of each study by networks and by a mixture, chosen and fitted, that its label had no part
in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from kernels.lumbar.labels import ROWS
from training.data.out_of_fold import Answers, Average, Mixture, Rule
from training.ensemble.search import Ensemble, MemberCosts, SearchError, cross_fitted, parts_of
from training.ensemble.strategies import RecipeWeights, strategies
from training.evaluation.metric import pooled
from training.evaluation.ties import first_best
from training.evaluation.training_priors import weighted_priors

# Bars show beyond this.
PROGRESS_AFTER_S = 5


def nested_answers(answers: Answers, average: Average, recipes: Sequence[RecipeWeights] = ()) -> np.ndarray:
    """(N, 25, 3) probabilities in the order of ROWS; NaN where no member of its mixture answers.

    For each fold the way to mix is chosen by its score on the other folds, cross-fitted among these, and fitted to
    them; their labels alone make the priors, too.  What the mixture is fitted on are answers of networks that did see
    the fold's studies, as in any stacking.  Raises SearchError where nothing can be cross-fitted.
    """
    parts, found = parts_of(answers), np.full((*answers.labels.shape, 3), np.nan)
    for part in tqdm(sorted(set(parts.tolist())), desc="nested answers", unit="fold", delay=PROGRESS_AFTER_S):
        here = parts == part
        rest, its = answers.only(studies=~here), answers.only(studies=here)
        rule = Rule(average, weighted_priors(pd.DataFrame(rest.labels, columns=list(ROWS))))
        ensemble = chosen(rest, rule, recipes)
        mixture = Mixture(its.only(members=ensemble.members), ensemble.rule(rule))
        _, weight = mixture.sums(ensemble.weights)  # (25, N)
        found[here] = np.where((weight > 0).T[..., None], mixture.mix(ensemble.weights, ensemble.scaling), np.nan)
    return found


def chosen(answers: Answers, rule: Rule, recipes: Sequence[RecipeWeights]) -> Ensemble:
    """The way with the lowest cross-fitted score, fitted to all of these answers."""
    fits = strategies(answers, rule, MemberCosts.equal(answers.members), None, recipes).fits
    names = list(fits)
    scores = [pooled(answers.labels, cross_fitted(answers, rule, fits[name])).final for name in names]
    if np.isnan(scores).all():
        raise SearchError("no study of the other folds has a label: nothing can be fitted")
    return fits[names[first_best(scores)]](answers)
