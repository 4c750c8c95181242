"""The weighted mean over routes and members, and the prior where no member answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from ..labels import ROW_INDEX, ROWS, group_of
from ..manifest import GraderWeight, Manifest, Route


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
    given = list(answers)
    shares, logits = np.zeros((len(given), len(ROWS))), np.full((len(given), len(ROWS), 3), np.nan)
    for place, (weight, its) in enumerate(given):
        shares[place] = shares_by_row(weight)
        for row, said in its.items():
            logits[place, ROW_INDEX[row]] = said
    return combine_arrays(shares, logits, priors, average, multipliers)


def shares_by_row(weight: Mapping[str, float]) -> np.ndarray:
    """(25,) a member's weight in each of ROWS, from that by condition group."""
    return np.array([weight.get(group_of(row), 0.0) for row in ROWS])


def combine_arrays(
    shares: np.ndarray,
    logits: np.ndarray,
    priors: Mapping[str, tuple[float, float, float]],
    average: Literal["logits", "probabilities"],
    multipliers: Mapping[str, tuple[float, float, float]] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """`combine` for (member, 25) weights and (member, 25, 3) logits, NaN where a member is silent."""
    said = np.isfinite(logits).all(2)
    shares = np.where(said, shares, 0.0)
    votes = np.where(said[..., None], logits, 0.0)
    if average == "probabilities":
        votes = softmax(votes)
    weights = shares.sum(0)
    mean = (shares[..., None] * votes).sum(0) / np.maximum(weights, 1e-12)[:, None]
    rows = softmax(mean) if average == "logits" else mean
    if multipliers:
        rows = rows * np.array([multipliers.get(group_of(row), (1.0, 1.0, 1.0)) for row in ROWS])
    fallen = [row for row, weight in zip(ROWS, weights, strict=True) if weight == 0]
    for row in fallen:
        rows[ROW_INDEX[row]] = priors[row]
    return rows / rows.sum(1, keepdims=True), fallen


def shares_of(route: Route, part: GraderWeight) -> dict[str, float]:
    """A grader's weight by condition group, in the whole ensemble."""
    return {group: share * route.weight for group, share in part.weight.items()}


def multipliers_of(manifest: Manifest) -> dict[str, tuple[float, float, float]]:
    """By condition group, under plain names."""
    return {str(group): factors for group, factors in manifest.multipliers.items()}
