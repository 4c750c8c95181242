"""Slices of a stack, cropped around a point in square millimetres.

Pixels are sampled at fixed-point coordinates (1/32 pixel, as in OpenCV's own tables), so that a sample depends on its
own position only: a wide crop contains the bytes of a narrow one, a mirrored crop mirrors them, and OpenCV 4 and 5 give
the same bytes, which their warpAffine does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from ..dicom.geometry import Plane
from ..dicom.study import Stack

FRACTIONS = 32  # sub-pixel steps of cv2.remap's fixed-point tables
FARTHEST_PX = 30000  # what a 16-bit coordinate can hold
# Shrunk by more than this, several samples a pixel are averaged, as plain linear sampling would alias.
LARGEST_PLAIN_SHRINK = 1.5


def longer_side_mm(stack: Stack, indices: Sequence[int] | np.ndarray) -> float:
    """The longer side of the largest of some slices."""
    return float(max(np.multiply(stack.pixels.shape[1:], stack.planes[index].spacing_mm).max() for index in indices))


def sample(
    stack: Stack, window: np.ndarray, centre_mm: np.ndarray | None, size_mm: float, size_px: int
) -> tuple[np.ndarray, list[Plane]]:
    """(slice, size_px, size_px) uint8 crops of the slices of a window, and their planes.

    Each is centred on the projection of `centre_mm` onto its plane; without a centre, on the middle of the slice.
    """
    size = size_px
    feet = np.tile(stack.centre, (len(stack.planes), 1)) if centre_mm is None else stack.to_pixels(centre_mm)[:, :2]
    pixels = np.empty((len(window), size, size), np.uint8)
    planes: list[Plane] = []
    for place, index in enumerate(window):
        if place and index == window[place - 1]:
            pixels[place] = pixels[place - 1]
            planes.append(planes[-1])
            continue
        plane = stack.planes[index]
        # Rounded, so that the slices of an upright stack share one table; a millionth of a pixel is no loss.
        row, column = (round(float(value), 6) for value in feet[index])
        row_step, column_step = (size_mm / size / spacing for spacing in plane.spacing_mm)
        _crop(stack.pixels[index], row, column, row_step, column_step, pixels[place])
        half = (size - 1) / 2
        planes.append(plane.grid(row - half * row_step, column - half * column_step, row_step, column_step))
    return pixels, planes


def _crop(image: np.ndarray, row: float, column: float, row_step: float, column_step: float, out: np.ndarray) -> None:
    """Fill `out` (size, size) with samples around a pixel position, so many pixels apart; zeros outside the image."""
    size = len(out)
    shrink = max(row_step, column_step)
    finer = math.ceil(shrink) if shrink > LARGEST_PLAIN_SHRINK else 1
    places, weights = _tables(row, column, row_step / finer, column_step / finer, size * finer)
    if finer == 1:
        cv2.remap(image, places, weights, cv2.INTER_LINEAR, dst=out, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    else:
        fine = cv2.remap(image, places, weights, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        cv2.resize(fine, (size, size), dst=out, interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=4)
def _tables(row: float, column: float, row_step: float, column_step: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """cv2.remap's fixed-point tables: whole pixels (size, size, 2) int16 and fractions (size, size) uint16."""
    offsets = np.arange(size) - (size - 1) / 2
    # Half to even, after the rounding noise is gone: the one rule that mirrored coordinates share.
    rows = np.rint(np.round((row + offsets * row_step) * FRACTIONS, 6))
    columns = np.rint(np.round((column + offsets * column_step) * FRACTIONS, 6))
    limit = FARTHEST_PX * FRACTIONS
    y = np.clip(rows, -limit, limit).astype(np.int32)[:, None]
    x = np.clip(columns, -limit, limit).astype(np.int32)
    places = np.empty((size, size, 2), np.int16)
    places[..., 0] = x // FRACTIONS
    places[..., 1] = y // FRACTIONS
    return places, (y % FRACTIONS * FRACTIONS + x % FRACTIONS).astype(np.uint16)
