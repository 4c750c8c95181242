"""Landmark maps: Gaussian balls at known landmarks, drawn on the slices of a view as an input of a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..dicom.geometry import Plane

# Wide enough to reach the neighbouring slices, narrow enough to keep neighbouring levels apart.
SIGMA_MM = 8.0
FAINTEST = 1 / 512


def draw_marks(planes: Sequence[Plane], marks: Sequence[np.ndarray | None], shape: tuple[int, ...]) -> np.ndarray:
    """(slice, H, W) uint8: a Gaussian ball around each known mark (3,) mm, mark k of n with peak 255 (k + 1) / n.

    The maximum where balls overlap; slices beyond the planes stay blank.
    """
    drawn = np.zeros(shape, np.float32)  # (S, H, W)
    known = [(number, mark) for number, mark in enumerate(marks) if mark is not None and np.isfinite(mark).all()]
    rows, columns = np.arange(shape[1]), np.arange(shape[2])
    for image, plane in zip(drawn, planes, strict=False):
        for number, mark in known:
            row, column, distance_mm = plane.to_pixel(mark)
            height = np.exp(-0.5 * (distance_mm / SIGMA_MM) ** 2) * (number + 1) / len(marks)
            if height < FAINTEST:
                continue
            between_rows, between_columns = plane.spacing_mm
            down = np.exp(-0.5 * ((rows - row) * between_rows / SIGMA_MM) ** 2)
            across = np.exp(-0.5 * ((columns - column) * between_columns / SIGMA_MM) ** 2)
            np.maximum(image, np.multiply.outer(height * down, across), out=image)
    return np.rint(drawn * 255).astype(np.uint8)
