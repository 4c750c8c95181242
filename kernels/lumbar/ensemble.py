"""The weighted mean over routes and members, and the prior where no member answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from .labels import ROWS, group_of


def softmax(logits: np.ndarray) -> np.ndarray:
    """(..., 3) float64 logits → probabilities that sum to 1."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def combine(
    answers: Iterable[tuple[Mapping[str, float], Mapping[str, np.ndarray]]],
    priors: Mapping[str, tuple[float, float, float]],
    average: Literal["logits", "probabilities"],
    multipliers: Mapping[str, tuple[float, float, float]] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """(25, 3) float64 probabilities in the order of ROWS, and the names of the rows that had to fall back to the prior.

    `answers`: for each member its weight by condition group and its logits by row.  `multipliers`: by condition group,
    what the averaged probabilities of the three severities are multiplied with; priors stay as they are.
    """
    total = np.zeros((len(ROWS), 3))
    weights = np.zeros(len(ROWS))
    for weight, logits in answers:
        for index, row in enumerate(ROWS):
            share = weight.get(group_of(row), 0.0)
            if share > 0 and row in logits:
                total[index] += share * (logits[row] if average == "logits" else softmax(logits[row]))
                weights[index] += share
    fallen = [row for row, weight in zip(ROWS, weights, strict=True) if weight == 0]
    mean = total / np.maximum(weights, 1e-12)[:, None]
    rows = softmax(mean) if average == "logits" else mean
    if multipliers:
        rows = rows * np.array([multipliers.get(group_of(row), (1.0, 1.0, 1.0)) for row in ROWS])
    for row in fallen:
        rows[ROWS.index(row)] = priors[row]
    return rows / rows.sum(1, keepdims=True), fallen
