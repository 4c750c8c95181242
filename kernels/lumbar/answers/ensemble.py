"""Weighted mean of the graders' answers over all routes, rescaled, and the prior where no grader answers."""

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


def rescaled(rows: np.ndarray, temperatures: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """Averaged probabilities (..., 3) → p ** (1 / temperature) · multiplier, which do not sum to 1 yet.

    `temperatures` (..., 1) and `multipliers` (..., 3) broadcast.  A temperature divides the logits: above 1 it makes
    answers less confident; 1 keeps every bit.
    """
    if (temperatures != 1).any():
        rows = np.where(temperatures == 1, rows, rows ** (1 / temperatures))
    return rows * multipliers


def combine(
    shares: np.ndarray,
    logits: np.ndarray,
    priors: np.ndarray,
    average: Literal["logits", "probabilities"],
    multipliers: np.ndarray | None = None,
    temperatures: np.ndarray | None = None,
) -> tuple[np.ndarray, list[str]]:
    """(25, 3) float64 probabilities in the order of ROWS, and the names of the rows that fall back to the prior.

    `shares`: (M, 25) weights of M graders.  `logits`: (M, 25, 3), NaN where a grader gives no answer.
    `priors`: (25, 3), which stay as they are.  `multipliers` (25, 3) and `temperatures` (25,): see `rescaled`.
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
    rows = rescaled(
        rows,
        np.ones((len(ROWS), 1)) if temperatures is None else temperatures[:, None],
        np.ones((len(ROWS), 1)) if multipliers is None else multipliers,
    )
    rows = np.where(weights[:, None] > 0, rows, priors)
    return rows / rows.sum(1, keepdims=True), [row for row, weight in zip(ROWS, weights, strict=True) if weight == 0]
