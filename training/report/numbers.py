"""The numbers that the report breaks a score down into: by row, by fold, by predicted probability, and the worst."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.lumbar.labels import CONDITIONS, GROUPS, LEVELS, ROWS, SEVERITIES, SEVERITY_WEIGHTS
from training.data.tables import ROW_GROUPS
from training.evaluation.metric import Score, Sums, pooled, row_losses

BINS = 10


@dataclass(frozen=True)
class Cell:
    """The metric's weighted log loss of a condition at a level; NaN where nothing is labelled."""

    loss: float
    prior: float
    rows: int


@dataclass(frozen=True)
class Bin:
    """Rows whose predicted probability of a severity is alike."""

    predicted: float
    observed: float
    """Share of the severity; each row counts 1, 2 or 4 by its label, as in the metric."""
    rows: int


@dataclass(frozen=True)
class Case:
    """One row of one study, and what it costs."""

    study: int
    row: int
    loss: float
    """Weighted by severity, as the metric adds it up."""


def by_condition_and_level(
    labels: np.ndarray, probabilities: np.ndarray, priors: np.ndarray
) -> dict[tuple[str, str], Cell]:
    """(condition, level) and (condition, "all") → cell; priors as probabilities (N, 25, 3)."""
    ours, known = row_losses(labels, probabilities), row_losses(labels, priors)
    cells = {}
    for condition in CONDITIONS:
        for level in (*LEVELS, "all"):
            chosen = [row.startswith(condition) and (level == "all" or row.endswith(level)) for row in ROWS]
            cells[condition, level] = Cell(
                _mean(ours, chosen), _mean(known, chosen), int((labels[:, chosen] >= 0).sum())
            )
    return cells


def _mean(sums: Sums, rows: list[bool]) -> float:
    weight = float(sums.weight[:, rows].sum())
    return float(sums.loss[:, rows].sum()) / weight if weight > 0 else float("nan")


def by_fold(folds: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> dict[int, Score]:
    """The pooled score of every fold's studies."""
    return {
        int(fold): pooled(labels[folds == fold], probabilities[folds == fold]) for fold in sorted(set(folds.tolist()))
    }


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
    """The rows that cost most, the dearest first."""
    loss = row_losses(labels, probabilities).loss
    order = np.argsort(-loss, axis=None, kind="stable")[: min(count, int((labels >= 0).sum()))]
    places = zip(*np.unravel_index(order, loss.shape), strict=True)
    return [Case(int(study), int(row), float(loss[study, row])) for study, row in places]
