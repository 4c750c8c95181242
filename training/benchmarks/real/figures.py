"""Figures of located and graded canals, each with a bootstrap interval over studies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernels.lumbar.labels import GROUPS
from training.data.tables import ROW_GROUPS
from training.evaluation.intervals import LEVEL, RESAMPLES, Difference, Interval, differences, intervals

SPINAL = "spinal"
CANAL_ROWS = tuple(np.flatnonzero(ROW_GROUPS == GROUPS.index(SPINAL)).tolist())


@dataclass(frozen=True)
class StudyResult:
    """What a row of the table answers for one study."""

    errors_mm: tuple[float, ...]
    """In plane, of each landmark; infinite where none was located."""
    right_level: tuple[bool, ...]
    rows: tuple[tuple[float, float, float], ...]
    """Probabilities of the 25 rows."""

    @property
    def mean_mm(self) -> float:
        """Of the landmarks' errors."""
        return float(np.mean(self.errors_mm)) if self.errors_mm else float("inf")


@dataclass(frozen=True)
class RowFigures:
    """A row of the table."""

    studies: int
    median_mm: Interval
    p95_mm: Interval
    right_level: Interval
    log_loss: Interval
    against_prior: Difference
    auc: Interval


def figures_of(
    results: Mapping[str, StudyResult], labels: Mapping[str, np.ndarray], priors: Mapping[str, np.ndarray]
) -> RowFigures:
    """The figures of a row.  `labels`: study → (25,) severities, negative = missing.  `priors`: study → (25, 3)."""
    studies = sorted(results)
    its = [results[study] for study in studies]
    truth = np.stack([labels[study] for study in studies])
    rows = np.array([one.rows for one in its], float)  # (N, 25, 3)
    errors = [np.array(one.errors_mm, float) for one in its]
    right = [np.array(one.right_level, float) for one in its]
    abnormal = [_abnormal(*pair) for pair in zip(truth, rows, strict=True)]
    return RowFigures(
        studies=len(studies),
        median_mm=interval_of(errors, lambda drawn: float(np.median(np.concatenate(drawn)))),
        p95_mm=interval_of(errors, lambda drawn: float(np.quantile(np.concatenate(drawn), 0.95, method="higher"))),
        right_level=interval_of(right, lambda drawn: float(np.concatenate(drawn).mean())),
        log_loss=intervals(truth, rows)[SPINAL],
        against_prior=differences(truth, rows, np.stack([priors[study] for study in studies]))[SPINAL],
        auc=interval_of(abnormal, lambda drawn: auc(np.concatenate(drawn))),
    )


def prior_loss(studies: Sequence[str], labels: Mapping[str, np.ndarray], priors: Mapping[str, np.ndarray]) -> Interval:
    """Log loss of the priors."""
    truth, rows = (np.stack([its[study] for study in studies]) for its in (labels, priors))
    return intervals(truth, rows)[SPINAL]


def _abnormal(truth: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(K, 2) of a study's labelled canal rows: whether it is moderate or severe, and the probability of that."""
    known = [row for row in CANAL_ROWS if truth[row] >= 0]
    return np.stack([truth[known] > 0, 1 - rows[known, 0]], 1).astype(float)


def auc(pairs: np.ndarray) -> float:
    """Area under the ROC curve of (N, 2) class and score; NaN with a single class.  Ties count a half."""
    positive, negative = (pairs[pairs[:, 0] == value, 1] for value in (1, 0))
    if not len(positive) or not len(negative):
        return float("nan")
    apart = positive[:, None] - negative
    return float((apart > 0).mean() + 0.5 * (apart == 0).mean())


def interval_of(
    by_study: Sequence[np.ndarray], statistic: Callable[[Sequence[np.ndarray]], float], resamples: int = RESAMPLES
) -> Interval:
    """A statistic of all studies, and its interval over studies drawn with replacement; resamples without it do not
    count."""
    if not sum(map(len, by_study)):
        return Interval(float("nan"), float("nan"), float("nan"))
    random = np.random.default_rng(0)
    drawn = random.integers(len(by_study), size=(resamples, len(by_study)))
    values = np.array([statistic([by_study[number] for number in numbers]) for numbers in drawn])
    values = values[~np.isnan(values)]
    value = statistic(by_study)
    if not len(values):
        return Interval(value, float("nan"), float("nan"))
    # An infinite error is a bound like any other, which an interpolation would turn into NaN.
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return Interval(value, float(low), float(high))
