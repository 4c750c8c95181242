"""Priors of the 25 rows from the training labels."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kernels.lumbar.labels import ROW_PLACES, ROWS, SEVERITIES, SEVERITY_WEIGHTS, group_of

# Added to each class's weighted count, so that no class has probability zero.
SMOOTHING = 0.5


def weighted_priors(labels: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Row → weighted class frequencies (1/2/4) of its condition group and level, sides pooled.

    This is the constant that minimises the metric's three condition losses.  labels: study × 25, negative = missing.
    """
    priors: dict[str, tuple[float, float, float]] = {}
    for group_level in {(group_of(row), level) for row, (_, level) in ROW_PLACES.items()}:
        rows = [row for row, (_, level) in ROW_PLACES.items() if (group_of(row), level) == group_level]
        values = labels[rows].to_numpy().ravel()
        counts = np.bincount(values[values >= 0].astype(int), minlength=len(SEVERITIES))
        weighted = counts * np.array(SEVERITY_WEIGHTS) + SMOOTHING
        normal, moderate, severe = (float(value) for value in weighted / weighted.sum())
        priors |= dict.fromkeys(rows, (normal, moderate, severe))
    return {row: priors[row] for row in ROWS}
