"""The search's fits without each study, kept: what the shipped ensemble may be scored and drawn by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from training.data.out_of_fold import Answers, Rule
from training.ensemble.search import Ensemble, MemberCosts, SearchError, cross_fitted
from training.ensemble.strategies import Standing, strategies


class CrossFit:
    """Ensembles that the search fits on the other folds' studies, each used for the studies that it never saw."""

    def __init__(self, answers: Answers, rule: Rule, fit: Callable[[Answers], Ensemble]) -> None:
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

    def _without(self, part: Answers) -> Ensemble:
        """What is fitted on a part of the studies."""
        if part.studies not in self._fitted:
            self._fitted[part.studies] = self._fit(part)
        return self._fitted[part.studies]


def cross_fit(
    answers: Answers,
    rule: Rule,
    costs: MemberCosts,
    seconds: float | None,
    standing: Sequence[Standing],
    strategy: str,
) -> CrossFit:
    """Of an ensemble that was searched [within `seconds` a study] and made by a strategy.  Raises SearchError."""
    fits = strategies(answers, rule, costs, seconds, standing).fits
    if strategy not in fits:
        raise SearchError(f"the ensemble was made as '{strategy}', which these runs do not allow: make ensemble again")
    return CrossFit(answers, rule, fits[strategy])
