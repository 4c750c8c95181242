"""The competition's metric: weighted log loss of three condition groups, and of any severe canal stenosis.

The mean of four losses: for spinal, foraminal and subarticular rows the log loss weighted 1/2/4 by severity (a
weighted mean, pooled over studies, levels and sides); and the binary log loss of "any level of the canal is severe",
predicted by the largest severe probability of the study's spinal rows and weighted by the largest weight of these.
Source: the organisers' metric notebook, re-implemented in float64 so that no library's version changes a score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from kernels.lumbar.labels import GROUPS, ROW_INDEX, ROWS, SEVERITIES, SEVERITY_WEIGHTS, split_row_ids
from training.data.tables import ROW_GROUPS

# What sklearn.metrics.log_loss clips float64 probabilities at.
CLIP = float(np.finfo(np.float64).eps)
PARTS = (*GROUPS, "any_severe")
CANAL = np.flatnonzero(ROW_GROUPS == GROUPS.index("spinal"))


class MetricError(Exception):
    """Tables that cannot be scored, with the reason."""


@dataclass(frozen=True)
class Score:
    """The four losses and their mean.  NaN where a group has no labelled row; the mean is then of the others."""

    spinal: float
    foraminal: float
    subarticular: float
    any_severe: float
    final: float

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.4f}" for name, value in vars(self).items())


@dataclass(frozen=True)
class Sums:
    """Terms of the metric's weighted means: by study (N, 4) in the order of PARTS, or by row (N, 25)."""

    loss: np.ndarray
    """Weighted losses."""
    weight: np.ndarray
    """0 without a labelled row of the part, or without a label."""


def with_mean(loss: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(..., 4) sums of loss and weight → (..., 5): weighted mean of each part, NaN without weight, and their mean."""
    present = weight > 0
    parts = np.divide(loss, weight, out=np.full(loss.shape, np.nan), where=present)
    count = present.sum(-1)
    total = np.where(present, parts, 0).sum(-1)
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return np.concatenate([parts, mean[..., None]], -1)


def score(solution: pd.DataFrame, submission: pd.DataFrame) -> Score:
    """Score predictions against one-hot labels; both have row_id, normal_mild, moderate, severe.

    Tables are joined by row_id, whatever their order.  A row of the solution that is all zero or NaN is not scored.
    Raises MetricError for missing, repeated or invalid rows.
    """
    row_ids, truth, predicted = _aligned(solution, submission)
    names = split_row_ids(row_ids)
    unknown = [row for _, row in names if row not in ROW_INDEX]
    if unknown:
        raise MetricError(f"the solution's row {unknown[0]} is none of the 25 rows")
    place = {study: index for index, study in enumerate(dict.fromkeys(study for study, _ in names))}
    studies, rows = [place[study] for study, _ in names], [ROW_INDEX[row] for _, row in names]
    labels = np.full((len(place), len(ROWS)), -1)
    labels[studies, rows] = truth.argmax(1)
    probabilities = np.full((*labels.shape, len(SEVERITIES)), 1 / len(SEVERITIES))
    probabilities[studies, rows] = predicted
    return pooled(labels, probabilities)


def pooled(labels: np.ndarray, probabilities: np.ndarray) -> Score:
    """The score of labels (N, 25) int, negative = missing, and probabilities (N, 25, 3)."""
    rows, known = row_losses(labels, probabilities), labels >= 0
    severe, severe_weight = _any_severe(labels, probabilities)
    chosen = [known & (ROW_GROUPS == part) for part in range(len(GROUPS))]
    loss = np.array([*(rows.loss[part].sum() for part in chosen), severe.sum()])
    weight = np.array([*(rows.weight[part].sum() for part in chosen), severe_weight.sum()])
    return Score(*(float(value) for value in with_mean(loss, weight)))


def row_losses(labels: np.ndarray, probabilities: np.ndarray) -> Sums:
    """(N, 25) weighted log losses and weights of every row, 0 where there is no label; arguments as for `pooled`."""
    known, weights, true = _known(labels, probabilities)
    return Sums(np.where(known, -np.log(np.clip(true, CLIP, 1 - CLIP)) * weights, 0), weights)


def losses(labels: np.ndarray, probabilities: np.ndarray) -> Sums:
    """Terms of each study (N, 4); arguments as for `pooled`."""
    rows = row_losses(labels, probabilities)
    severe, severe_weight = _any_severe(labels, probabilities)
    chosen = [ROW_GROUPS == part for part in range(len(GROUPS))]
    return Sums(
        np.column_stack([*(rows.loss[:, part].sum(1) for part in chosen), severe]),
        np.column_stack([*(rows.weight[:, part].sum(1) for part in chosen), severe_weight]),
    )


def group_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(3,) contribution of each condition group to the final score, any-severe as spinal; they sum to `final`."""
    sums = losses(labels, probabilities)
    parts = with_mean(sums.loss.sum(0), sums.weight.sum(0))[:-1]
    spinal, foraminal, subarticular, any_severe = np.nan_to_num(parts) / max(int((~np.isnan(parts)).sum()), 1)
    return np.array([spinal + any_severe, foraminal, subarticular])


def slopes(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The derivative (N, 25, 3) of the final score by each probability; arguments as for `pooled`."""
    known, weights, true = _known(labels, probabilities)
    each = losses(labels, probabilities).weight
    totals = each.sum(0)
    shares = np.where(totals > 0, 1 / np.maximum(totals, CLIP), 0) / max(int((totals > 0).sum()), 1)
    result = np.zeros(probabilities.shape)
    rows = np.where(known, -weights * shares[ROW_GROUPS] / np.maximum(true, CLIP), 0)
    np.put_along_axis(result, labels.clip(0)[..., None], rows[..., None], -1)
    canal = np.where(known[:, CANAL], probabilities[:, CANAL, 2], -1)
    peak = canal.argmax(1)
    severe = canal.max(1).clip(CLIP, 1 - CLIP)
    by_peak = np.where((labels[:, CANAL] == 2).any(1), -1 / severe, 1 / (1 - severe))
    result[np.arange(len(labels)), CANAL[peak], 2] += by_peak * each[:, -1] * shares[-1]
    return result


def _known(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, 25): whether a row is labelled, its weight (0 = unlabelled), and the probability of the true class."""
    known = labels >= 0
    classes = labels.clip(0)
    weights = np.where(known, np.array(SEVERITY_WEIGHTS)[classes], 0)
    return known, weights, np.take_along_axis(probabilities, classes[..., None], -1)[..., 0]


def _aligned(solution: pd.DataFrame, submission: pd.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray]:
    columns = list(SEVERITIES)
    for name, table in (("solution", solution), ("submission", submission)):
        missing = {"row_id", *columns} - set(table.columns)
        if missing:
            raise MetricError(f"the {name} lacks the columns {', '.join(sorted(missing))}")
        repeated = table["row_id"].duplicated()
        if repeated.any():
            raise MetricError(f"the {name} has {table['row_id'][repeated].iloc[0]} more than once")
    labelled = solution[solution[columns].fillna(0).to_numpy(float).sum(1) > 0]
    if labelled.empty:
        raise MetricError("the solution labels no row")
    absent = ~labelled["row_id"].isin(submission["row_id"]).to_numpy()
    if absent.any():
        first = labelled["row_id"].iloc[int(absent.argmax())]
        raise MetricError(f"the submission lacks {int(absent.sum())} rows of the solution, the first is {first}")
    predicted = submission.set_index("row_id")[columns].reindex(labelled["row_id"])
    values = predicted.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = ~np.isfinite(values).all(1) | (values < 0).any(1) | (np.abs(values.sum(1) - 1) > 1e-6)
    if wrong.any():
        first = labelled["row_id"].iloc[int(wrong.argmax())]
        raise MetricError(f"{int(wrong.sum())} rows of the submission are not probabilities, the first is {first}")
    truth = labelled[columns].to_numpy(np.float64)
    if not np.isin(truth, (0, 1)).all() or (truth.sum(1) != 1).any():
        raise MetricError("the solution is not one-hot")
    return list(labelled["row_id"]), truth, values


def _any_severe(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) weighted binary losses of the largest severe probability of the labelled spinal rows, and their weights."""
    known, weights, _ = _known(labels, probabilities)
    severe = np.where(known[:, CANAL], probabilities[:, CANAL, 2], 0).max(1).clip(CLIP, 1 - CLIP)
    weight = weights[:, CANAL].max(1)
    return -np.where((labels[:, CANAL] == 2).any(1), np.log(severe), np.log1p(-severe)) * weight, weight
