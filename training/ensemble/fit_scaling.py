"""Temperatures and class multipliers of averaged probabilities, fitted to the metric itself.

A temperature corrects confidence: networks that were trained for long, or on few studies, are too confident, which the
metric's any-severe part punishes most.  Class multipliers correct frequencies: they undo, for one, a training without
the metric's weights.  Left and right share both.
"""

from __future__ import annotations

import numpy as np

from kernels.lumbar.labels import GROUPS
from training.data.out_of_fold import PLAIN, Answers, Mixture, Rule, Scaling, slopes_by_log
from training.data.tables import ROW_GROUPS
from training.ensemble.fit_weights import minimised
from training.evaluation.metric import group_losses, slopes

# Ridge penalties on the logarithms, over the number of studies: of one study, a factor e costs so much of the score.
# Chosen on 240 phantom studies, for seven recipes and their mixture: fitted on 16, 32, 80, 160 of them, this scaling
# changes the score of the others by -0.005, -0.006, -0.014, -0.019 in the mean, at worst by +0.010, +0.011, -0.004,
# -0.003; temperatures alone by -0.002, -0.003, -0.005, -0.005, at worst by +0.012.  Sharper answers are dearer: with 1
# for both, the gain is the same and the worst of 16 studies +0.027; with 3 for both, less is gained on 19 real
# patients, whose networks are too confident.
MULTIPLIER_PENALTY = 1.0
SOFTER_PENALTY, SHARPER_PENALTY = 1.0, 3.0
MULTIPLIER_BOUNDS = (0.2, 6.0)
TEMPERATURE_BOUNDS = (0.5, 3.0)
# Where fewer studies have a label and an answer, all stay 1.
LEAST_STUDIES = 15
# Below this the logarithm of a probability is cut off.
SMALLEST = 1e-300


def fit_scaling(answers: Answers, rule: Rule, weights: np.ndarray) -> Scaling:
    """Scaling of the averages by `weights` (M, 3 groups) that minimises the metric; in no group worse than none.

    The multiplier of the first severity is 1.  Rows without an answer keep the prior.
    """
    mixture, labels = Mixture(answers, rule), answers.labels
    sums = mixture.sums(weights)
    answered = sums[1] > 0  # (25, N)
    logs = np.log(np.maximum(mixture.averaged(*sums), SMALLEST))  # (25, N, 3)
    studies = max(len(answers.studies), 1)

    def scaling_of(flat: np.ndarray) -> Scaling:
        by_group = flat.reshape(len(GROUPS), 3)  # logarithms of the two multipliers and the temperature
        factors = np.exp(np.column_stack([np.zeros(len(GROUPS)), by_group[:, :2]]))
        return Scaling(factors, np.exp(by_group[:, 2]))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        scaling = scaling_of(flat)
        mixed = mixture.finish(*sums, scaling)
        by_log = slopes_by_log(mixed, slopes(labels, mixed)).transpose(1, 0, 2) * answered[..., None]
        by_temperature = -(by_log * logs).sum((1, 2)) / scaling.temperatures[ROW_GROUPS]
        by_row = np.column_stack([by_log.sum(1)[:, 1:], by_temperature])  # (25, 3)
        by_group = np.stack([by_row[ROW_GROUPS == group].sum(0) for group in range(len(GROUPS))])
        logarithms = flat.reshape(by_group.shape)
        of_temperatures = np.where(logarithms[:, 2] > 0, SOFTER_PENALTY, SHARPER_PENALTY)
        penalties = np.column_stack([np.full((len(GROUPS), 2), MULTIPLIER_PENALTY), of_temperatures]) / studies
        penalty = (penalties * logarithms**2).sum()
        slope = by_group + 2 * penalties * logarithms
        return float(group_losses(labels, mixed).sum() + penalty), slope.ravel()

    factor_bounds, own_bounds = (tuple(np.log(one).tolist()) for one in (MULTIPLIER_BOUNDS, TEMPERATURE_BOUNDS))
    bounds: list[tuple[float, float]] = []
    for enough in _studies(answers, answered) >= LEAST_STUDIES:
        bounds += [factor_bounds, factor_bounds, own_bounds] if enough else [(0.0, 0.0)] * 3
    found = scaling_of(minimised(objective, np.zeros(len(bounds)), bounds))
    with_it, without = (group_losses(labels, mixture.finish(*sums, its)) for its in (found, PLAIN))
    gains = with_it < without
    return Scaling(
        np.where(gains[:, None], found.multipliers, PLAIN.multipliers),
        np.where(gains, found.temperatures, PLAIN.temperatures),
    )


def _studies(answers: Answers, answered: np.ndarray) -> np.ndarray:
    """(3 groups,) how many studies have a labelled row of a group that is answered."""
    counted = (answers.labels >= 0) & answered.T  # (N, 25)
    return np.array([counted[:, ROW_GROUPS == group].any(1).sum() for group in range(len(GROUPS))])
