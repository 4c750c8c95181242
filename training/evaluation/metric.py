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

from kernels.lumbar.labels import GROUPS, SEVERITIES, SEVERITY_WEIGHTS, group_of

# What sklearn.metrics.log_loss clips float64 probabilities at.
CLIP = float(np.finfo(np.float64).eps)


class MetricError(Exception):
    """Tables that cannot be scored, and why."""


@dataclass(frozen=True)
class Score:
    """The four losses and their mean.  NaN where a group has no labelled row; the mean is then of the others."""

    spinal: float
    foraminal: float
    subarticular: float
    any_severe: float
    final: float


def score(solution: pd.DataFrame, submission: pd.DataFrame) -> Score:
    """Score predictions against one-hot labels; both have row_id, normal_mild, moderate, severe.

    Tables are joined by row_id, whatever their order.  A row of the solution that is all zero or NaN is not scored.
    Raises MetricError for missing, repeated or invalid rows.
    """
    row_ids, truth, predicted = _aligned(solution, submission)
    weights = truth @ np.array(SEVERITY_WEIGHTS)
    loss = -np.log(np.clip((truth * predicted).sum(1), CLIP, 1 - CLIP))
    groups = np.array([group_of(row_id) for row_id in row_ids])
    spinal, foraminal, subarticular = (_mean(loss[groups == group], weights[groups == group]) for group in GROUPS)
    canal = groups == "spinal"
    studies = np.array([row_id.partition("_")[0] for row_id in row_ids])[canal]
    any_severe = _any_severe(studies, truth[canal], predicted[canal], weights[canal])
    final = float(np.nanmean([spinal, foraminal, subarticular, any_severe]))
    return Score(spinal, foraminal, subarticular, any_severe, final)


def _aligned(solution: pd.DataFrame, submission: pd.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray]:
    columns = list(SEVERITIES)
    for name, table in (("solution", solution), ("submission", submission)):
        missing = {"row_id", *columns} - set(table.columns)
        if missing:
            raise MetricError(f"the {name} lacks the columns {sorted(missing)}")
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


def _mean(loss: np.ndarray, weights: np.ndarray) -> float:
    return float((loss * weights).sum() / weights.sum()) if loss.size else float("nan")


def _any_severe(studies: np.ndarray, truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> float:
    """Binary loss over studies of the largest severe value of the spinal rows."""
    if not studies.size:
        return float("nan")
    rows = pd.DataFrame({"study": studies, "truth": truth[:, 2], "predicted": predicted[:, 2], "weight": weights})
    peak = rows.groupby("study").max()
    severe = np.clip(peak["predicted"].to_numpy(), CLIP, 1 - CLIP)
    loss = -np.where(peak["truth"].to_numpy() == 1, np.log(severe), np.log1p(-severe))
    return _mean(loss, peak["weight"].to_numpy())
