"""One decoded image of a series, in the file's own frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .geometry import Grids
from .header import FARTHEST_MM, Contrast, numbers


@dataclass(frozen=True, eq=False)
class Image:
    """One decoded image of a series, in the file's own frame.

    Value = sign × (rescale slope × (step × word + low) + rescale intercept), increasing with brightness.
    """

    file: str
    """File name, and the frame of a file of several."""
    instance: int
    """The file's number (its name, in the competition)."""
    order: tuple[int, int]
    """Instance number of the header, then the file's number: the order where there is no geometry."""
    words: np.ndarray
    """(H, W) uint16"""
    step: float
    low: float
    sign: int
    """-1 where bright means low (MONOCHROME1)."""
    rescale: tuple[float, float] | None
    """Slope and intercept of the header; None where one of them is no usable number."""
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None
    location: bytes | None
    """The slice location as it is stored."""
    contrast: Contrast

    @property
    def slice_location_mm(self) -> float | None:
        """The slice location; None where it is missing or not plausible."""
        found = numbers(self.location, 1)
        return found[0] if found and abs(found[0]) <= FARTHEST_MM else None

    @property
    def scale(self) -> tuple[float, float]:
        """Slope and intercept from a word to its value."""
        slope, intercept = self.rescale or (1.0, 0.0)
        return self.sign * slope * self.step, self.sign * (intercept + slope * self.low)


def grids_of(images: Sequence[Image]) -> Grids:
    """The pixel grids of images whose position, orientation and spacing are known."""
    positions = np.array([image.position_mm for image in images], float).reshape(-1, 3)
    cosines = np.array([image.orientation for image in images], float).reshape(-1, 6)
    spacings = np.array([image.spacing_mm for image in images], float).reshape(-1, 2)
    return Grids(positions, cosines[:, :3] * spacings[:, 1:], cosines[:, 3:] * spacings[:, :1])
