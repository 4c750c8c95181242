"""Weights of members and multipliers of classes, fitted to the metric itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize

from kernels.lumbar.labels import GROUPS
from training.data.out_of_fold import Answers, Mixture, Rule
from training.data.tables import ROW_GROUPS
from training.evaluation.metric import group_losses, slopes
from training.evaluation.ties import first_best

# Ridge penalty on the distance from the simple mean, over the number of studies; 1 = that of one member alone.
# With 22 graders on 48 phantom studies the cross-fitted score was 0.277 at 1, 0.272 at 10, 0.269 at 30.
PENALTY = 10.0
# The same of multipliers, which are few: a factor e.
MULTIPLIER_PENALTY = 1.0
# Weights below this share are 0.
SMALL = 1e-3
MULTIPLIER_BOUNDS = (0.2, 6.0)
FIT_TOLERANCE = 1e-7


def fit_weights(answers: Answers, rule: Rule, multipliers: np.ndarray | None = None) -> np.ndarray:
    """(M, 3 groups) weights, each column summing to 1, that minimise the metric; never worse than the simple mean.

    `multipliers`: those of the classes (3 groups, 3) that the mean will be given.  A ridge penalty on the
    distance from the simple mean fades with the number of studies.
    """
    count, labels = len(answers.members), answers.labels
    simple = np.full((count, len(GROUPS)), 1 / max(count, 1))
    if count < 2:
        return simple
    mixture, penalty = Mixture(answers, rule), PENALTY / len(answers.studies) * count / (count - 1)

    def costs(weights: np.ndarray) -> np.ndarray:
        return group_losses(labels, mixture.mix(weights, multipliers)) + penalty * ((weights - simple) ** 2).sum(0)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(simple.shape)
        by_probability = slopes(labels, mixture.mix(weights, multipliers))
        by_weight = mixture.slopes(weights, by_probability, multipliers) + 2 * penalty * (weights - simple)
        return float(costs(weights).sum()), by_weight.ravel()

    alone = best_alone(answers, rule, multipliers)
    candidates = [simple, alone]
    for start in (simple, 0.9 * alone + 0.1 * simple):
        found = _minimised(objective, start, (1e-6, None))
        weights = found / found.sum(0)
        few = np.where(weights < SMALL, 0, weights)
        candidates.append(few / few.sum(0))
    # Of candidates whose losses differ by less than the tolerance of a fit, the first and simplest is taken.
    best = first_best([costs(weights) for weights in candidates], FIT_TOLERANCE)
    return np.stack([candidates[index][:, group] for group, index in enumerate(best)], -1)


def fit_multipliers(answers: Answers, rule: Rule, weights: np.ndarray) -> np.ndarray:
    """(3 groups, 3) class multipliers of the averaged probabilities, the first 1; never worse than none.

    They undo, for one, a training without the metric's weights.  Rows that kept the prior are left as they are.
    """
    mixture, labels = Mixture(answers, rule), answers.labels
    sums, penalty = mixture.sums(weights), MULTIPLIER_PENALTY / len(answers.studies)
    answered = (sums[1] > 0).T[..., None]

    def of(logs: np.ndarray) -> np.ndarray:
        return np.exp(np.column_stack([np.zeros(len(GROUPS)), logs.reshape(-1, 2)]))

    def objective(logs: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = mixture.finish(*sums, of(logs))
        by_probability = slopes(labels, mixed)
        by_log = answered * mixed * (by_probability - (by_probability * mixed).sum(-1, keepdims=True))
        by_group = np.stack([by_log[:, ROW_GROUPS == group].sum((0, 1)) for group in range(len(GROUPS))])
        value = group_losses(labels, mixed).sum() + penalty * (logs**2).sum()
        return float(value), by_group[:, 1:].ravel() + 2 * penalty * logs

    low, high = np.log(MULTIPLIER_BOUNDS)
    fitted = of(_minimised(objective, np.zeros((len(GROUPS), 2)), (low, high)))
    none = np.ones_like(fitted)
    with_them, without = (group_losses(labels, mixture.finish(*sums, its)) for its in (fitted, none))
    return np.where((with_them < without)[:, None], fitted, none)


def best_alone(answers: Answers, rule: Rule, multipliers: np.ndarray | None = None) -> np.ndarray:
    """(M, 3 groups) weight 1 for the one member that is best at a group."""
    mixture, weights = Mixture(answers, rule), np.zeros((len(answers.members), len(GROUPS)))
    alone = np.eye(len(weights))[..., None] * np.ones(len(GROUPS))
    scores = np.array([group_losses(answers.labels, mixture.mix(one, multipliers)) for one in alone])
    weights[first_best(scores), range(len(GROUPS))] = 1
    return weights


def _minimised(
    objective: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, bounds: tuple[float, float | None]
) -> np.ndarray:
    options = {"ftol": FIT_TOLERANCE, "maxiter": 100}
    found = minimize(
        objective, start.ravel(), jac=True, method="L-BFGS-B", bounds=[bounds] * start.size, options=options
    )
    return np.asarray(found.x).reshape(start.shape)
