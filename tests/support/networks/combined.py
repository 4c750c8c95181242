"""`ensemble.combine` on answers by row, with the public priors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from kernels.lumbar.answers.ensemble import by_row, combine
from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.labels import ROW_INDEX, ROWS

PRIORS = np.array([public_priors()[row] for row in ROWS])


def combined(
    answers: Sequence[tuple[Mapping[str, float], Mapping[str, np.ndarray]]],
    average: Literal["logits", "probabilities"],
    multipliers: Mapping[str, tuple[float, float, float]] | None = None,
    temperatures: Mapping[str, float] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """`answers`: weight by condition group and logits by row, of each grader."""
    logits = np.full((len(answers), len(ROWS), 3), np.nan)
    for place, (_, its) in enumerate(answers):
        for row, values in its.items():
            logits[place, ROW_INDEX[row]] = values
    shares = np.array([by_row(weight.items(), 0.0) for weight, _ in answers]).reshape(-1, len(ROWS))
    factors = by_row(multipliers.items(), (1.0, 1.0, 1.0)) if multipliers else None
    divisors = by_row(temperatures.items(), 1.0) if temperatures else None
    return combine(shares, logits, PRIORS, average, factors, divisors)
