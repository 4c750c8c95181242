"""A score broken down: by condition and level, by predicted probability, by predicted severity, and the worst rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernels.lumbar.labels import CONDITIONS, GROUPS, LEVELS, ROWS, SEVERITIES, SEVERITY_WEIGHTS
from training.data.tables import ROW_GROUPS
from training.evaluation.landmark_errors import LandmarkError
from training.evaluation.metric import Sums, row_losses

BINS = 10


@dataclass(frozen=True)
class ConditionLoss:
    """Weighted log loss of a condition at a level, and that of the priors; NaN where nothing is labelled."""

    loss: float
    prior: float
    rows: int

    @property
    def gain(self) -> float:
        """Share of the priors' loss that is gone."""
        return 0.0 if math.isnan(self.loss) or self.prior <= 0 else 1 - self.loss / self.prior


@dataclass(frozen=True)
class Bin:
    """Rows of one bin of predicted probability."""

    predicted: float
    observed: float
    """Share of the severity; each row counts 1, 2 or 4 by its label, as in the metric."""
    rows: int


@dataclass(frozen=True)
class Case:
    """One row of one study and its loss."""

    study: int
    row: int
    loss: float
    """Log loss, weighted by severity."""


def losses_by_condition_and_level(
    labels: np.ndarray, probabilities: np.ndarray, priors: np.ndarray
) -> dict[tuple[str, str], ConditionLoss]:
    """(condition, level) and (condition, "all") → loss; priors as probabilities (N, 25, 3)."""
    ours, known = row_losses(labels, probabilities), row_losses(labels, priors)
    losses = {}
    for condition in CONDITIONS:
        for level in (*LEVELS, "all"):
            chosen = [row.startswith(condition) and (level == "all" or row.endswith(level)) for row in ROWS]
            labelled = int((labels[:, chosen] >= 0).sum())
            losses[condition, level] = ConditionLoss(_mean(ours, chosen), _mean(known, chosen), labelled)
    return losses


def _mean(sums: Sums, rows: list[bool]) -> float:
    weight = float(sums.weight[:, rows].sum())
    return float(sums.loss[:, rows].sum()) / weight if weight > 0 else float("nan")


def reliability(labels: np.ndarray, probabilities: np.ndarray, group: str, severity: str) -> list[Bin]:
    """Ten equal bins of predicted probability, without empty ones.

    Rows are weighted 1/2/4 by label: the probabilities that minimise the metric are shares so weighted.
    """
    chosen = (ROW_GROUPS == GROUPS.index(group)) & (labels >= 0)
    own, predicted = labels[chosen], probabilities[chosen][:, SEVERITIES.index(severity)]
    weights, true = np.array(SEVERITY_WEIGHTS)[own], own == SEVERITIES.index(severity)
    places = np.minimum((predicted * BINS).astype(int), BINS - 1)
    found = []
    for place in range(BINS):
        here = places == place
        if here.any():
            shares = weights[here] / weights[here].sum()
            found.append(Bin(float(shares @ predicted[here]), float(shares @ true[here]), int(here.sum())))
    return found


def confusion(labels: np.ndarray, probabilities: np.ndarray, group: str) -> np.ndarray:
    """(3, 3) rows of a condition group: by label, then by the most probable severity."""
    chosen = (ROW_GROUPS == GROUPS.index(group)) & (labels >= 0)
    counts = np.zeros((len(SEVERITIES), len(SEVERITIES)), int)
    np.add.at(counts, (labels[chosen], probabilities[chosen].argmax(-1)), 1)
    return counts


def worst(labels: np.ndarray, probabilities: np.ndarray, count: int) -> list[Case]:
    """The rows with the largest weighted log loss, the largest first."""
    loss = row_losses(labels, probabilities).loss
    order = np.argsort(-loss, axis=None, kind="stable")[: min(count, int((labels >= 0).sum()))]
    places = zip(*np.unravel_index(order, loss.shape), strict=True)
    return [Case(int(study), int(row), float(loss[study, row])) for study, row in places]


def mean_and_range(errors: Sequence[LandmarkError], name: str) -> str:
    """A figure of the localisation errors of several folds, in mm: mean weighted by points [lowest, highest]."""
    values = [float(getattr(one, name)) for one in errors]
    mean = float(np.average(values, weights=[one.count for one in errors]))
    text = f"{mean:.1f}" if math.isfinite(mean) else "not located"
    return text if len(values) == 1 else f"{text} [{min(values):.1f}, {max(values):.1f}]"
