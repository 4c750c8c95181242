"""Best of several scores up to rounding, so that the choice does not depend on the processor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Scores and probabilities that differ by less are equal: rounding depends on the order of sums and on the processor.
SAME = 1e-9


def first_best(values: Sequence[float] | Sequence[np.ndarray] | np.ndarray, within: float = SAME) -> np.ndarray:
    """Index of the lowest along the first axis; of equal ones the first."""
    rows = np.asarray(values)
    return np.asarray((rows <= rows.min(0) + within).argmax(0))
