"""Tissues, how bright each is in a sequence, and the patch of points that structures are painted into."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .curve import AnyFloats, Floats

Contrast = Literal["t1", "t2", "stir"]


class Tissue(IntEnum):
    """Tissue classes."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    MARROW = 3
    CORTEX = 4
    """Compact bone and endplates."""
    LIGAMENT = 5
    ANNULUS = 6
    NUCLEUS = 7
    CSF = 8
    ROOT = 9
    CORD = 10
    VESSEL = 11
    """Fast blood: a flow void."""
    VEIN = 12
    BOWEL = 13
    SKIN = 14
    JOINT_FLUID = 15


# Signals relative to fat (T1) and to CSF (T2, STIR), in the order of Tissue.
_SIGNALS: dict[Contrast, tuple[float, ...]] = {
    "t1": (0.0, 1.0, 0.38, 0.62, 0.06, 0.1, 0.3, 0.38, 0.2, 0.42, 0.42, 0.06, 0.3, 0.42, 0.45, 0.2),
    "t2": (0.0, 0.65, 0.2, 0.44, 0.04, 0.07, 0.14, 0.55, 1.0, 0.45, 0.42, 0.05, 0.3, 0.5, 0.3, 0.9),
    "stir": (0.0, 0.06, 0.26, 0.14, 0.03, 0.06, 0.14, 0.6, 1.0, 0.38, 0.44, 0.05, 0.35, 0.5, 0.15, 0.95),
}


def signal_table(contrast: Contrast) -> Floats:
    """Signal of each tissue, (tissue,)."""
    return np.array(_SIGNALS[contrast], np.float32)


def sample_signal_table(rng: np.random.Generator, contrast: Contrast) -> Floats:
    """The signals as one scanner and patient would show them."""
    table = signal_table(contrast)
    table *= rng.normal(1.0, 0.1, len(table)).astype(np.float32)
    table[Tissue.MARROW] *= rng.uniform(0.7, 1.3)
    return table


@dataclass
class Patch:
    """Flat arrays over points in the frame of their nearest disc (see curve.py), and their signal so far.

    `ladder` is the place along the spine counted in discs; borders of tissues blend over `edge` mm.
    """

    left: Floats
    posterior: Floats
    height: Floats
    fraction: Floats
    ladder: Floats
    signal: Floats
    table: Floats
    edge: float

    def paint(self, distance: AnyFloats, tissue: Tissue, strength: float | AnyFloats = 1.0) -> None:
        """Cover the points at negative `distance` (mm outside the structure's surface) with a tissue."""
        if distance.min(initial=np.inf) >= 0.5 * self.edge:
            return
        cover = np.clip(0.5 - distance / self.edge, 0.0, 1.0) * strength
        self.signal += cover * (self.table[tissue] - self.signal)

    def part(self, chosen: NDArray[np.intp]) -> Patch:
        """The chosen points as a patch of their own."""
        names = ("left", "posterior", "height", "fraction", "ladder", "signal")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def put(self, chosen: NDArray[np.intp], part: Patch) -> None:
        """Take over the signals of a painted part."""
        self.signal[chosen] = part.signal


def ellipse(
    across: AnyFloats, along: AnyFloats, half_across: float | AnyFloats, half_along: float | AnyFloats
) -> Floats:
    """Approximate signed distance in mm to an ellipse around the origin."""
    radius = np.sqrt((across / half_across) ** 2 + (along / half_along) ** 2)
    return np.asarray((radius - 1.0) * np.minimum(half_across, half_along), np.float32)
