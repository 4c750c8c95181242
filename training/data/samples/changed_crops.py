"""Crops changed at random in training: rotated, sheared, scaled, shifted and taken from neighbouring slices.

The change is part of the one sampling of a slice's pixels, so these are interpolated once, and a changed crop has the
real pixels of its surroundings at its border.  A crop without a change is the kernel's, byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from kernels.lumbar.dicom.geometry import MINUS_X, Plane
from kernels.lumbar.inputs.crops import LARGEST_PLAIN_SHRINK, Crops
from kernels.lumbar.inputs.views import View
from training.data.samples.augment import uniform
from training.recipe_schema.fitting import Augmentation

# OpenCV samples so many slices in one call in little more time than one.
SLICES_AT_ONCE = 4
# Half of the kernel's own step of coordinates: slices whose grids differ by less are sampled alike.
SAME_PX = 1 / 64
# Rows of a matrix (2, 3) from (column, row, 1) to column and row.
Map = tuple[tuple[float, float, float], tuple[float, float, float]]
INTERPOLATION = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def random_affine(settings: Augmentation, count: int, generator: torch.Generator) -> torch.Tensor:
    """(count, 2, 2) matrices from offsets (column, row) in a crop to offsets in its slice: rotation, shear, scale."""
    angle = torch.deg2rad(uniform(generator, count, settings.rotate_deg))
    shear = torch.tan(torch.deg2rad(uniform(generator, count, settings.shear_deg)))
    scale = 1 + uniform(generator, count, settings.scale)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)  # (B, 2, 2)
    skew = torch.eye(2).repeat(count, 1, 1)
    skew[:, 0, 1] = shear
    return rotation @ skew * scale[:, None, None]


@dataclass(frozen=True, eq=False)
class Change:
    """The change of a view in the plane of its slices, and along them."""

    matrix: np.ndarray
    """(2, 2) from offsets (column, row) in the crop to offsets in the slice, both in mm."""
    shift_mm: np.ndarray
    """(2,) of the centre, by column and row."""
    slices: int = 0
    """Shift of the slice window, where the view is one."""
    offset_mm: np.ndarray | None = None
    """(3,) patient mm by which the landmark that chooses the slices is off, of a left side or the midline."""

    def of(self, view: View, right: bool = False) -> View:
        """The changed view, `right`: of a right side; landmark maps are drawn in its changed planes."""
        slices = self.slices
        if self.offset_mm is not None:
            slices += slices_off(view, self.offset_mm * MINUS_X if right else self.offset_mm)
        moved = view.moved(slices)
        return replace(moved, parts=tuple(ChangedCrops.from_crops(part, self) for part in moved.parts))


def slices_off(view: View, offset_mm: np.ndarray) -> int:
    """By how many slices a view's window moves, to an end of its stack at most, where its point is off by so much."""
    if view.index is None:
        return 0
    (part,) = view.parts
    positions_mm = part.stack.positions_mm
    places = np.arange(len(positions_mm))
    wanted_mm = np.interp(view.index, places, positions_mm) + part.stack.position_mm(offset_mm)
    return round(float(np.interp(wanted_mm, positions_mm, places))) - round(view.index)


@dataclass(frozen=True, eq=False)
class ChangedCrops(Crops):
    """Crops whose pixel grids are changed by an affine map about their centre."""

    change: Change

    @classmethod
    def from_crops(cls, crops: Crops, change: Change) -> ChangedCrops:
        """The crops with a change."""
        own = crops.stack, crops.window, crops.feet, crops.size_mm, crops.size_px
        return cls(*own, change, shift_mm=crops.shift_mm)

    def planes(self) -> tuple[Plane, ...]:
        """The plane of each crop."""
        planes = []
        for index, grid in zip(self.window, self.grids, strict=True):
            own = self.stack.planes[index]
            (across, down_across, column), (across_down, down, row) = self._map(grid)
            columns_mm = across * own.column_mm + across_down * own.row_mm
            rows_mm = down_across * own.column_mm + down * own.row_mm
            planes.append(Plane(own.to_patient(row, column), columns_mm, rows_mm))
        return tuple(planes)

    def pixels(self) -> np.ndarray:
        """(slice, size_px, size_px) uint8"""
        pixels = np.empty((len(self.window), self.size_px, self.size_px), np.uint8)
        for first, end in self._alike():
            slices = [self.stack.pixels[index] for index in self.window[first:end]]
            _sample(slices, self._map(self.grids[first]), pixels[first:end])
        return pixels

    def _map(self, grid: tuple[float, float, float, float]) -> Map:
        """From pixels of a crop to those of its slice."""
        row, column, row_step, column_step = grid
        (a, b), (c, d) = self.change.matrix
        right_px, down_px = self.change.shift_mm * (self.size_px / self.size_mm)
        half = (self.size_px - 1) / 2
        a, b, c, d = a * column_step, b * column_step, c * row_step, d * row_step
        column += right_px * column_step - (a + b) * half
        row += down_px * row_step - (c + d) * half
        return (a, b, column), (c, d, row)

    def _alike(self) -> Iterator[tuple[int, int]]:
        """First and end of runs of slices that are sampled at the same pixels, as those of an upright stack are."""
        first = 0
        for place in range(1, len(self.grids) + 1):
            if (
                place == len(self.grids)
                or place - first == SLICES_AT_ONCE
                or any(abs(a - b) > SAME_PX for a, b in zip(self.grids[first], self.grids[place], strict=True))
            ):
                yield first, place
                first = place


def _sample(slices: Sequence[np.ndarray], to_slice: Map, out: np.ndarray) -> None:
    """Fill `out` (n, size, size) from n slices (H, W) of one pixel grid; zeros outside of these."""
    size = out.shape[-1]
    finer, ((a, b, column), (c, d, row)) = _fine_enough(to_slice)
    reach = size * finer
    height, width = slices[0].shape
    left, right = _touched(column, a * reach, b * reach, width)
    top, bottom = _touched(row, c * reach, d * reach, height)
    if right <= left or bottom <= top:
        out[...] = 0
        return
    patches = [image[top:bottom, left:right] for image in slices]  # only these are interleaved
    spare = SLICES_AT_ONCE - len(patches) if len(patches) > 1 else 0  # two or three channels take longer than four
    matrix = np.array([[a, b, column - left], [c, d, row - top]])
    image = cv2.merge([*patches, *patches[-1:] * spare])
    sampled = cv2.warpAffine(image, matrix, (reach, reach), flags=INTERPOLATION, borderMode=cv2.BORDER_CONSTANT)
    if finer > 1:
        sampled = cv2.resize(sampled, (size, size), interpolation=cv2.INTER_AREA)
    cv2.split(sampled, [*out, *[np.empty((size, size), np.uint8)] * spare])


def _fine_enough(to_slice: Map) -> tuple[int, Map]:
    """How many samples a pixel are averaged along each axis, as in kernels.lumbar.inputs.crops, and the map of these
    samples."""
    (a, b, column), (c, d, row) = to_slice
    shrink = max(math.hypot(a, c), math.hypot(b, d))
    if shrink <= LARGEST_PLAIN_SHRINK:
        return 1, to_slice
    finer = math.ceil(shrink)
    first = 0.5 / finer - 0.5  # of a pixel's samples, in pixels from its centre
    return finer, (
        (a / finer, b / finer, column + (a + b) * first),
        (c / finer, d / finer, row + (c + d) * first),
    )


def _touched(start: float, along: float, across: float, length: int) -> tuple[int, int]:
    """First and end of the pixels along one axis that samples from `start` on, in two directions, interpolate."""
    low, high = start + min(along, 0) + min(across, 0), start + max(along, 0) + max(across, 0)
    return max(math.floor(low) - 1, 0), min(math.ceil(high) + 2, length)
