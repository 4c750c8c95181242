"""Weights of members, fitted to the metric itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize

from kernels.lumbar.labels import GROUPS
from training.data.out_of_fold import PLAIN, Answers, Mixture, Rule, Scaling
from training.evaluation.metric import group_losses, slopes
from training.evaluation.ties import first_best

# Ridge penalty on the distance from the simple mean, over the number of studies; 1 = that of one member alone.
# With 22 graders on 48 phantom studies the cross-fitted score was 0.277 at 1, 0.272 at 10, 0.269 at 30.
PENALTY = 10.0
# Weights below this share are 0.
SMALL = 1e-3
FIT_TOLERANCE = 1e-7


def fit_weights(answers: Answers, rule: Rule, scaling: Scaling = PLAIN, around: np.ndarray | None = None) -> np.ndarray:
    """(M, 3 groups) weights, each column summing to 1, that minimise the metric; never worse than `around`.

    `around`: such weights that need no fit; default: the simple mean.  `scaling`: that which their mean will be given.
    A ridge penalty on the distance from them fades with the number of studies.
    """
    count, labels = len(answers.members), answers.labels
    centre = np.full((count, len(GROUPS)), 1 / max(count, 1)) if around is None else around
    if count < 2:
        return centre
    mixture, penalty = Mixture(answers, rule), PENALTY / len(answers.studies) * count / (count - 1)

    def costs(weights: np.ndarray) -> np.ndarray:
        return group_losses(labels, mixture.mix(weights, scaling)) + penalty * ((weights - centre) ** 2).sum(0)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(centre.shape)
        by_probability = slopes(labels, mixture.mix(weights, scaling))
        by_weight = mixture.slopes(weights, by_probability, scaling) + 2 * penalty * (weights - centre)
        return float(costs(weights).sum()), by_weight.ravel()

    alone = best_alone(answers, rule, scaling)
    candidates = [centre, alone]
    for start in (centre, 0.9 * alone + 0.1 * centre):
        found = minimised(objective, start, [(1e-6, None)] * start.size)
        weights = found / found.sum(0)
        few = np.where(weights < SMALL, 0, weights)
        candidates.append(few / few.sum(0))
    # Of candidates whose losses differ by less than the tolerance of a fit, the first and simplest is taken.
    best = first_best([costs(weights) for weights in candidates], FIT_TOLERANCE)
    return np.stack([candidates[index][:, group] for group, index in enumerate(best)], -1)


def best_alone(answers: Answers, rule: Rule, scaling: Scaling = PLAIN) -> np.ndarray:
    """(M, 3 groups) weight 1 for the one member that is best at a group."""
    mixture, weights = Mixture(answers, rule), np.zeros((len(answers.members), len(GROUPS)))
    alone = np.eye(len(weights))[..., None] * np.ones(len(GROUPS))
    scores = np.array([group_losses(answers.labels, mixture.mix(one, scaling)) for one in alone])
    weights[first_best(scores), range(len(GROUPS))] = 1
    return weights


def minimised(
    objective: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    bounds: Sequence[tuple[float, float | None]],
) -> np.ndarray:
    """Argument of the least value of `objective` (flat argument → value, gradient), as an array like `start`."""
    options = {"ftol": FIT_TOLERANCE, "maxiter": 100}
    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return np.asarray(found.x).reshape(start.shape)
