"""Weighted mean of the graders' answers over all routes, and the prior where no grader answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from ..labels import ROWS, group_of


def softmax(logits: np.ndarray) -> np.ndarray:
    """(..., 3) float64 logits → probabilities that sum to 1."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def by_row(by_group: Iterable[tuple[str, object]], default: object) -> np.ndarray:
    """(25, ...) values in the order of ROWS, from (condition group, value) pairs."""
    values = dict(by_group)
    return np.array([values.get(group_of(row), default) for row in ROWS])


def combine(
    shares: np.ndarray,
    logits: np.ndarray,
    priors: np.ndarray,
    average: Literal["logits", "probabilities"],
    multipliers: np.ndarray | None = None,
) -> tuple[np.ndarray, list[str]]:
    """(25, 3) float64 probabilities in the order of ROWS, and the names of the rows that fall back to the prior.

    `shares`: (M, 25) weights of M graders.  `logits`: (M, 25, 3), NaN where a grader gives no answer.
    `priors`: (25, 3).  `multipliers`: (25, 3) factors of the averaged probabilities; priors stay as they are.
    """
    answered = np.isfinite(logits).all(2)  # (M, 25)
    shares = np.where(answered, shares, 0.0)
    values = np.where(answered[..., None], logits, 0.0)  # (M, 25, 3)
    if average == "probabilities":
        values = softmax(values)
    weights = shares.sum(0)  # (25,)
    rows = (shares[..., None] * values).sum(0) / np.maximum(weights, 1e-12)[:, None]  # (25, 3)
    if average == "logits":
        rows = softmax(rows)
    if multipliers is not None:
        rows = rows * multipliers
    rows = np.where(weights[:, None] > 0, rows, priors)
    return rows / rows.sum(1, keepdims=True), [row for row, weight in zip(ROWS, weights, strict=True) if weight == 0]
