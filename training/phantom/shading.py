"""What dims an image smoothly: the distance from the receiving coil, and a saturation band before the spine.

Coils lie in the table, so the belly is dark; a band that is saturated before each measurement keeps its movements from
smearing over the spine.  Ranges after the sagittal T2 series of SPIDER (van der Graaf et al., Scientific Data 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .curve import DISCS, Floats
from .protocol import AXIAL_T2
from .sizes import Anatomy

_BAND_SHARE = 0.7
_COIL_BEHIND_DISCS_MM = 60.0


@dataclass(frozen=True)
class Band:
    """A saturated half-space: all that lies before a plane across the sagittal one."""

    edge: NDArray[np.float64]
    """(3,) mm, a point of the plane."""
    ahead: NDArray[np.float64]
    """(3,) unit vector into the band."""
    softness_mm: float
    remaining: float
    """Share of the signal that is left within."""


@dataclass(frozen=True)
class Shading:
    """The smooth factors of one series."""

    middle: NDArray[np.float64]
    """(3,) mm, the middle of the discs."""
    reach_mm: float
    """Depth at which the coil's signal falls to 0.6."""
    length_mm: float
    """Distance along the spine at which it falls to a half."""
    lowest: float
    band: Band | None

    def at(self, points: Floats) -> Floats:
        """Factor (...) of the signal at patient points (..., 3)."""
        depth = np.maximum(self.middle[1] + _COIL_BEHIND_DISCS_MM - points[..., 1], 0.0) / self.reach_mm
        along = (points[..., 2] - self.middle[2]) / self.length_mm
        factor = self.lowest + (1.1 - self.lowest) * np.exp(-0.5 * depth) / (1.0 + along**2)
        if self.band is not None:
            inside_mm = (points - self.band.edge.astype(np.float32)) @ self.band.ahead.astype(np.float32)
            share = 1.0 / (1.0 + np.exp(-np.clip(inside_mm / self.band.softness_mm, -30.0, 30.0)))
            factor = factor * (1.0 - (1.0 - self.band.remaining) * share)
        return np.asarray(factor, np.float32)


def sample_shading(rng: np.random.Generator, anatomy: Anatomy, description: str) -> Shading:
    """The shading of one series."""
    band = _sample_band(rng, anatomy) if rng.random() < _BAND_SHARE and description != AXIAL_T2 else None
    return Shading(
        middle=anatomy.curve.centres.mean(axis=0),
        reach_mm=float(rng.uniform(24.0, 90.0)),
        length_mm=float(rng.uniform(150.0, 300.0)),
        lowest=float(rng.uniform(0.02, 0.32)),
        band=band,
    )


def _sample_band(rng: np.random.Generator, anatomy: Anatomy) -> Band:
    """Along the line from the first to the last lumbar disc, before the bodies of the vertebrae."""
    first, middle, last = (anatomy.curve.centres[DISCS.index(disc)] for disc in ("l1_l2", "l3_l4", "l5_s1"))
    down = last - first
    angle = float(np.arctan2(down[1], -down[2]) + np.deg2rad(rng.normal(0.0, 6.0)))
    ahead = np.array([0.0, -np.cos(angle), -np.sin(angle)])
    before_mm = anatomy.levels[DISCS.index("l3_l4")].body_front + float(rng.uniform(-2.0, 26.0))
    return Band(middle + before_mm * ahead, ahead, float(rng.uniform(1.5, 6.0)), float(rng.uniform(0.04, 0.35)))
