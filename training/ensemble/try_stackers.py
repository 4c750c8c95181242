"""What a stacker is worth on top of a mixture, cross-fitted by study, and whether it is taken.

Mixture and stacker are both fitted on the other folds' studies.  The control is the same with labels exchanged between
studies: what still beats constant answers there has seen labels that it must not see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from kernels.lumbar.manifest import Stacker
from training.data.out_of_fold import Answers, Rule
from training.ensemble.search import Ensemble, calibrated_mean, cross_fitted
from training.ensemble.stackers import Kind, Stacked, fit_stacker
from training.evaluation.intervals import Difference, Interval, difference, differences, intervals

Fit = Callable[[Answers], Ensemble]


@dataclass(frozen=True)
class StackerScore:
    """A kind of stacker on top of the mixture written."""

    scores: dict[str, Interval]
    """Cross-fitted."""
    against: dict[str, Difference]
    """Less the mixture, on the same resamples: negative is a gain."""
    control: Difference
    """With labels exchanged between studies, less constant answers: must not be better."""
    is_taken: bool
    verdict: str


def try_stackers(
    kinds: Sequence[Kind], fit: Fit, found: Ensemble, answers: Answers, rule: Rule
) -> tuple[dict[str, StackerScore], Stacker | None]:
    """Each kind's score, and the best stacker whose gain over the mixture is outside its interval; None: no gain.

    `fit` makes the mixture of a part of the answers, `found` is that of all.
    """
    if not kinds:
        return {}, None
    mixture = _kept(fit)
    mixed = cross_fitted(answers, rule, mixture)
    shuffled = with_shuffled_labels(answers)
    constant = constant_rows(shuffled, rule)
    scores: dict[str, StackerScore] = {}
    for kind in kinds:
        rows = cross_fitted(answers, rule, partial(_stacked, kind, mixture, rule))
        against = differences(answers.labels, rows, mixed)
        by_chance = cross_fitted(shuffled, rule, partial(_stacked, kind, fit, rule))
        control = difference(shuffled.labels, by_chance, constant)
        gains, leaks = against["final"].verdict == "better", control.verdict == "better"
        verdict = "gains" if gains else "too few labels to fit it" if against["final"].is_none else "no gain here"
        if leaks:
            verdict = "beats constant answers on shuffled labels: not taken"
        scores[kind] = StackerScore(intervals(answers.labels, rows), against, control, gains and not leaks, verdict)
    taken = [kind for kind in kinds if scores[kind].is_taken]
    if not taken:
        return scores, None
    best = min(taken, key=lambda kind: scores[kind].scores["final"].value)
    scores = {kind: replace(one, is_taken=kind == best) for kind, one in scores.items()}
    return scores, fit_stacker(best, found, answers, rule).stacker


def with_shuffled_labels(answers: Answers) -> Answers:
    """The answers with the labels of other studies, in each fold the same number of studies."""
    return replace(answers, labels=answers.labels[np.random.default_rng(0).permutation(len(answers.labels))])


def constant_rows(answers: Answers, rule: Rule) -> np.ndarray:
    """(N, 25, 3): the priors, rescaled to the metric as any mixture, cross-fitted: the best that needs no image."""
    logits = np.broadcast_to(np.log(rule.prior_rows()), (1, *answers.labels.shape, 3))
    alone = replace(answers, members=("prior/prior",), logits=logits, evaluated=None)
    return cross_fitted(alone, rule, lambda part: calibrated_mean(part, rule))


def _stacked(kind: Kind, mixture: Fit, rule: Rule, part: Answers) -> Stacked:
    return fit_stacker(kind, mixture(part), part, rule)


def _kept(fit: Fit) -> Fit:
    """The same fits, each made once."""
    made: dict[tuple[str, ...], Ensemble] = {}

    def once(part: Answers) -> Ensemble:
        if part.studies not in made:
            made[part.studies] = fit(part)
        return made[part.studies]

    return once
