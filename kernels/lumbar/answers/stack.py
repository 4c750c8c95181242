"""Stacked answers: the mixture corrected by a small model of what each network says of a row and of its neighbours.

A model sees one side at a time.  For rows of the right side all 25 rows are exchanged by the one left/right permutation
first, so it knows no side, and a mirrored study gets mirrored answers; of the canal's rows both ways are averaged.
Training fits on these very features (training/ensemble/stackers.py).
"""

from __future__ import annotations

import numpy as np

from ..labels import LEVELS, MIRROR, ROW_INDEX, ROWS, SEVERITIES
from ..manifest import DEEPEST, StackedGroup, Stacker, Trees
from ..specs import Group
from .ensemble import softmax

# A group's rows by level, as the left side sees them.
OWN_ROWS = {
    "spinal": np.array([ROW_INDEX[f"spinal_canal_stenosis_{level}"] for level in LEVELS]),
    "foraminal": np.array([ROW_INDEX[f"left_neural_foraminal_narrowing_{level}"] for level in LEVELS]),
    "subarticular": np.array([ROW_INDEX[f"left_subarticular_stenosis_{level}"] for level in LEVELS]),
}
SIDES = (np.arange(len(ROWS)), np.array(MIRROR))
"""The rows that the left and the right side see as (own side, other side)."""
LEAST = 1e-6
MOST = 8.0


def log_ratios(logits: np.ndarray) -> np.ndarray:
    """(..., 3) logits or logarithms → (..., 2): those of moderate and severe less that of normal, within ± MOST."""
    return np.clip(logits[..., 1:] - logits[..., :1], -MOST, MOST)


def features(group: str, models: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """(N, 2 sides, 5 levels, D) features of a group's rows; NaN where a model does not answer.

    `models` (N, M, 25, 3) logits of the group's models, `mixture` (N, 25, 3) averaged probabilities.  D = 2 M + 14 + 5:
    each model's log-ratios of the row; the mixture's of the five conditions of its level and of its own condition one
    level up and down (at the ends: its own); which level it is.
    """
    own, levels = OWN_ROWS[group], np.arange(len(LEVELS))
    same_level = np.arange(len(ROWS)).reshape(-1, len(LEVELS)).T  # (5 levels, 5 conditions)
    above_below = own[np.clip(np.stack([levels - 1, levels + 1], 1), 0, len(LEVELS) - 1)]
    context = np.concatenate([same_level, above_below], 1)  # (5, 7)
    answers, mixed = log_ratios(models), log_ratios(np.log(np.maximum(mixture, LEAST)))
    found = []
    for rows in SIDES:
        its = answers[:, :, rows[own]].transpose(0, 2, 1, 3).reshape(len(models), len(LEVELS), -1)
        around = mixed[:, rows[context]].reshape(len(models), len(LEVELS), -1)
        which = np.broadcast_to(np.eye(len(LEVELS)), (len(models), len(LEVELS), len(LEVELS)))
        found.append(np.concatenate([its, around, which], 2))
    return np.stack(found, 1)


class StackedRows:
    """The rows of one condition group, corrected by its model."""

    def __init__(self, group: str, spec: StackedGroup) -> None:
        self._group, self._keep = group, spec.keep
        self._layers = [(np.array(one.weights).T, np.array(one.bias)) for one in spec.layers]
        self._trees = [_TreeArrays(one) for one in spec.trees]

    def __call__(self, models: np.ndarray, mixture: np.ndarray) -> np.ndarray:
        """(N, 25, 3) probabilities: rows of the group that all models answer are stacked, others as in `mixture`.

        `models` (N, M, 25, 3), NaN where one does not answer; `mixture` (N, 25, 3).
        """
        own, inputs = OWN_ROWS[self._group], features(self._group, models, mixture)
        answered = np.isfinite(inputs).all(3)  # (N, 2, 5)
        inputs = np.where(answered[..., None], inputs, 0.0)
        mixed = np.stack([mixture[:, rows[own]] for rows in SIDES], 1)  # (N, 2, 5, 3)
        logits = self._keep * np.log(np.maximum(mixed, LEAST)) + self._model(inputs)
        if self._group == "spinal":
            logits, answered = (logits[:, :1] + logits[:, 1:]) / 2, answered[:, :1]
        result = mixture.copy()
        for side, rows in enumerate(SIDES[: logits.shape[1]]):
            result[:, rows[own]] = np.where(answered[:, side, :, None], softmax(logits[:, side]), result[:, rows[own]])
        return result

    def _model(self, inputs: np.ndarray) -> np.ndarray:
        """(N, 2, 5, D) → (N, 2, 5, 3)."""
        if self._trees:
            return np.stack([its(inputs[:, :, level]) for level, its in enumerate(self._trees)], 2)
        for number, (weights, bias) in enumerate(self._layers):
            inputs = inputs @ weights + bias
            if number + 1 < len(self._layers):
                inputs = np.maximum(inputs, 0)
        return inputs


class _TreeArrays:
    def __init__(self, trees: Trees) -> None:
        self._start, self._roots = np.array(trees.start), np.array(trees.roots, int)
        self._feature, self._number = np.array(trees.feature, int), np.array(trees.number)
        self._left, self._right = np.array(trees.left, int), np.array(trees.right, int)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """(N, 2, D) → (N, 2, 3)."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        node = np.tile(self._roots, (len(flat), 1))  # (rows, T)
        for _ in range(DEEPEST):
            by = self._feature[node]
            if (by < 0).all():
                break
            goes_left = np.take_along_axis(flat, np.maximum(by, 0), 1) <= self._number[node]
            node = np.where(by < 0, node, np.where(goes_left, self._left[node], self._right[node]))
        sums = [self._number[node[:, severity :: len(SEVERITIES)]].sum(1) for severity in range(len(SEVERITIES))]
        return (self._start + np.stack(sums, 1)).reshape(*inputs.shape[:-1], len(SEVERITIES))


class Stack:
    """A manifest's stacker, prepared for answers of the manifest's jobs."""

    def __init__(self, spec: Stacker, graders: list[str]) -> None:
        """`graders`: of each job."""
        self._groups = {group: StackedRows(group, its) for group, its in spec.groups.items()}
        self._jobs = {
            group: [[job for job, name in enumerate(graders) if name in model] for model in its.models]
            for group, its in spec.groups.items()
        }

    def apply(self, logits: np.ndarray, mixture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of one study: (25, 3) probabilities, and (25,) whether a row of a stacked group keeps the mixture.

        `logits` (J, 25, 3) of the jobs, NaN where there is none; `mixture` (25, 3).  A model's answer is the mean of
        those of its jobs that answered the row.
        """
        result = mixture.copy()
        for group, stacked in self._groups.items():
            own = _rows_of(group)
            result[own] = stacked(self._models(group, logits)[None], mixture[None])[0, own]
        return result, self.kept(logits)

    def kept(self, logits: np.ndarray) -> np.ndarray:
        """(25,) whether a row of a stacked group keeps the mixture, as a model does not answer it."""
        found = np.zeros(len(ROWS), bool)
        for group in self._groups:
            own = _rows_of(group)
            found[own] = ~np.isfinite(self._models(group, logits)[:, own]).all((0, 2))
        return found

    def _models(self, group: Group, logits: np.ndarray) -> np.ndarray:
        """(M, 25, 3) logits of a group's models."""
        return np.stack([_mean(logits[jobs]) for jobs in self._jobs[group]])


def _rows_of(group: str) -> np.ndarray:
    """Places of a group's rows, of both sides."""
    return np.unique(np.concatenate([rows[OWN_ROWS[group]] for rows in SIDES]))


def _mean(logits: np.ndarray) -> np.ndarray:
    """(J, 25, 3) → (25, 3): the mean of what is there, NaN where nothing is."""
    there = np.isfinite(logits).all(2, keepdims=True)
    count = there.sum(0)
    return np.where(count > 0, np.where(there, logits, 0.0).sum(0) / np.maximum(count, 1), np.nan)
