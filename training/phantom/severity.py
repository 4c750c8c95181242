"""Severity grades of the 25 rows and the narrowing that follows from them: a latent Gaussian model.

One latent value a target, correlated over conditions and levels, is cut at the measured prevalences into
grades.  The narrowing measure follows the grade with a spread, so that neighbouring grades overlap a little,
as readers do: 0..1 is normal/mild, 1..2 moderate, 2..3 severe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kernels.lumbar.labels import CONDITIONS, LEVELS, ROWS

from .aggregates import ROWS_PREVALENCE

Floats = NDArray[np.float64]

# Latent correlation of conditions at one level, in the order of CONDITIONS (of grades it is less).
_BETWEEN_CONDITIONS = np.array(
    [
        [1.00, 0.57, 0.52, 0.50, 0.50],
        [0.57, 1.00, 0.50, 0.76, 0.82],
        [0.52, 0.50, 1.00, 0.57, 0.50],
        [0.50, 0.76, 0.57, 1.00, 0.82],
        [0.50, 0.82, 0.50, 0.82, 1.00],
    ]
)
# Latent correlation of levels by their distance 0..4.
_BETWEEN_LEVELS = np.array([1.0, 0.66, 0.45, 0.34, 0.26])
# L5/S1 is less correlated with the other levels: factor on its latent value, by CONDITIONS.
_L5_S1_BOND = (0.9, 0.78, 0.9, 0.78, 0.62)

GRADE_SPREAD = 0.36
"""Standard deviation of the narrowing measure about its place within the grade."""
GRADE_MARGIN = 0.08
"""Distance that the place within a grade keeps from the grade's borders (before the spread)."""

_cdf = np.vectorize(lambda value: 0.5 * (1.0 + math.erf(value / math.sqrt(2.0))), otypes=[float])


@dataclass(frozen=True)
class Severity:
    """The 25 grades (0, 1, 2) of a study and their narrowing measures, in the order of ROWS."""

    grades: NDArray[np.int64]
    narrowing: Floats


@cache
def _latent_factor() -> Floats:
    """(25, 25) matrix that turns independent normal values into correlated latent ones."""
    distance = np.abs(np.subtract.outer(np.arange(len(LEVELS)), np.arange(len(LEVELS))))
    correlation = np.kron(_BETWEEN_CONDITIONS, _BETWEEN_LEVELS[distance])
    bond = np.ones((len(CONDITIONS), len(LEVELS)))
    bond[:, -1] = _L5_S1_BOND
    correlation *= np.outer(bond, bond)
    np.fill_diagonal(correlation, 1.0)
    return np.asarray(np.linalg.cholesky(correlation))


@cache
def _borders() -> Floats:
    """(25, 4) cumulated shares of the grades: 0, normal/mild, + moderate, 1."""
    return np.concatenate([np.zeros((len(ROWS), 1)), np.cumsum(ROWS_PREVALENCE, axis=1)], axis=1)


def sample_severity(rng: np.random.Generator) -> Severity:
    """Grades and narrowing measures of one study."""
    latent = _latent_factor() @ rng.standard_normal(len(ROWS))
    quantile = _cdf(latent)
    borders = _borders()
    grades = (quantile[:, None] >= borders[:, 1:3]).sum(axis=1)
    rows = np.arange(len(ROWS))
    below, above = borders[rows, grades], borders[rows, grades + 1]
    place = GRADE_MARGIN + (1.0 - 2.0 * GRADE_MARGIN) * (quantile - below) / (above - below)
    narrowing = grades + place + GRADE_SPREAD * rng.standard_normal(len(ROWS))
    return Severity(grades, narrowing)


def level_values(values: Floats, condition: str) -> Floats:
    """The five levels' values of one condition out of 25 values in the order of ROWS."""
    start = CONDITIONS.index(condition) * len(LEVELS)
    return values[start : start + len(LEVELS)]
