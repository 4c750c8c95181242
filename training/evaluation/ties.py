"""Which of several scores is the best where they are equal but for rounding, so that no processor decides it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Scores and probabilities that differ by less are the same: two ways to sum the same numbers differ in their last bits,
# and by how much depends on the processor.
SAME = 1e-9


def first_best(values: Sequence[float] | Sequence[np.ndarray] | np.ndarray, within: float = SAME) -> np.ndarray:
    """Place of the lowest along the first axis; of those that are the same as the lowest, the first."""
    rows = np.asarray(values)
    return np.asarray((rows <= rows.min(0) + within).argmax(0))
