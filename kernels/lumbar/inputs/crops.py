"""Slices of a stack, cropped around a point in square millimetres.

Pixels are sampled at fixed-point coordinates (1/32 pixel, as in OpenCV's own tables), so that a sample depends on its
own position only: a wide crop contains the bytes of a narrow one, a mirrored crop mirrors them, and OpenCV 4 and 5 give
the same bytes, which their warpAffine does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import cv2
import numpy as np

from ..dicom.geometry import Plane
from ..dicom.study import Stack

FRACTION_BITS = 5  # of the sub-pixel steps of cv2.remap's fixed-point tables
FRACTIONS = 1 << FRACTION_BITS
FARTHEST_PX = 30000  # what a 16-bit coordinate can hold
# Shrunk by more than this, several samples a pixel are averaged, as plain linear sampling would alias.
LARGEST_PLAIN_SHRINK = 1.5


def longer_side_mm(stack: Stack, indices: Sequence[int] | np.ndarray) -> float:
    """The longer side of the largest of some slices."""
    height, width = stack.pixels.shape[1:]
    spacings = (stack.planes[index].spacing_mm for index in indices)
    return max(max(height * between_rows, width * between_columns) for between_rows, between_columns in spacings)


@dataclass(frozen=True, eq=False)
class Crops:
    """Square crops of some slices of a stack: where they are, and, when asked for, their planes and pixels.

    Each is centred on the foot of a point on its slice (Stack.to_pixels), or off it; without a point, on the middle of
    the slice.
    """

    stack: Stack
    window: Sequence[int] | np.ndarray
    """(slice,) indices of the slices; a repeated one follows itself."""
    feet: np.ndarray | None
    """(slice of the stack, 2 or more) row and column of the point's foot."""
    size_mm: float
    size_px: int
    shift_mm: tuple[float, float] = field(default=(0.0, 0.0), kw_only=True)
    """How far right of the foot and below it the centre lies."""

    @cached_property
    def grids(self) -> list[tuple[float, float, float, float]]:
        """Row and column of the centre, and steps of rows and columns, of each crop, in pixels of its slice."""
        stack, step_mm = self.stack, self.size_mm / self.size_px
        middles = [stack.centre] * len(self.window) if self.feet is None else self.feet[self.window, :2].tolist()
        right_mm, down_mm = self.shift_mm
        grids = []
        for index, (row, column) in zip(self.window, middles, strict=True):
            between_rows, between_columns = stack.planes[index].spacing_mm
            # Rounded, so that the slices of an upright stack share one table; a millionth of a pixel is no loss.
            row, column = round(row + down_mm / between_rows, 6), round(column + right_mm / between_columns, 6)
            grids.append((row, column, step_mm / between_rows, step_mm / between_columns))
        return grids

    def planes(self) -> tuple[Plane, ...]:
        """The plane of each crop."""
        half = (self.size_px - 1) / 2
        return tuple(
            self.stack.planes[index].grid(row - half * row_step, column - half * column_step, row_step, column_step)
            for index, (row, column, row_step, column_step) in zip(self.window, self.grids, strict=True)
        )

    def pixels(self) -> np.ndarray:
        """(slice, size_px, size_px) uint8"""
        pixels = np.empty((len(self.window), self.size_px, self.size_px), np.uint8)
        self.sample(pixels)
        return pixels

    def sample(self, out: np.ndarray) -> None:
        """Fill `out` (slice, size_px, size_px) uint8, whose slices are contiguous."""
        last = None
        for index, grid, image in zip(self.window, self.grids, out, strict=True):
            if last is not None and index == last[0]:
                image[:] = last[1]
            else:
                _crop(self.stack.pixels[index], *grid, image)
            last = index, image


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
    # Half to even, after the rounding noise is gone: the one rule that mirrored coordinates share.
    positions = np.rint(((((row,), (column,)) + _offsets(size) * ((row_step,), (column_step,))) * FRACTIONS).round(6))
    limit = FARTHEST_PX * FRACTIONS
    y, x = np.minimum(np.maximum(positions, -limit), limit).astype(np.int32)  # (size,) each, in fractions of a pixel
    y = y[:, None]
    places = np.empty((size, size), "<u4")  # column in the low half, row in the high one, as two int16 lie in memory
    np.bitwise_or((y >> FRACTION_BITS) << 16, x >> FRACTION_BITS & 0xFFFF, out=places.view("<i4"))
    weights = np.empty((size, size), np.uint16)
    last = FRACTIONS - 1
    np.bitwise_or(((y & last) << FRACTION_BITS).astype(np.uint16), (x & last).astype(np.uint16), out=weights)
    return places.view("<i2").reshape(size, size, 2), weights


@lru_cache(maxsize=8)
def _offsets(size: int) -> np.ndarray:
    """(size,) distances of pixels from the middle of a crop."""
    return np.arange(size) - (size - 1) / 2
