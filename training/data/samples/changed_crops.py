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
from kernels.lumbar.inputs.views import View, window_at
from training.data.samples.augment import uniform
from training.recipe_schema.fitting import Augmentation

# OpenCV samples so many slices in one call in little more time than one; interleaving one or two is not worth it.
SLICES_AT_ONCE, FEWEST_AT_ONCE = 4, 3
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
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    return torch.stack([cos, cos * shear - sin, sin, sin * shear + cos], 1).view(count, 2, 2)


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
        slices, index, before, parts = self.slices, view.index, view.before, view.parts
        if self.offset_mm is not None:
            slices += slices_off(view, self.offset_mm * MINUS_X if right else self.offset_mm)
        if index is not None and slices:  # a whole stack stays as it is
            (part,), index = parts, index + slices
            window, before = window_at(part.stack, index, view.request.slices)
            parts = (replace(part, window=window),)
        parts = tuple(ChangedCrops.from_crops(part, self) for part in parts)
        return View(view.request, parts, index, view.positions, view.mirrored, before, view.marks)


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

    def sample(self, out: np.ndarray) -> None:
        """Fill `out` (slice, size_px, size_px) uint8, whose slices are contiguous."""
        for first, end in self._alike():
            slices = [self.stack.pixels[index] for index in self.window[first:end]]
            _sample(slices, self._map(self.grids[first]), out[first:end])

    def _map(self, grid: tuple[float, float, float, float]) -> Map:
        """From pixels of a crop to those of its slice."""
        row, column, row_step, column_step = grid
        (a, b), (c, d) = self.change.matrix.tolist()  # single numbers are faster than small arrays
        right_mm, down_mm = self.change.shift_mm.tolist()
        per_mm, half = self.size_px / self.size_mm, (self.size_px - 1) / 2
        a, b, c, d = a * column_step, b * column_step, c * row_step, d * row_step
        column += right_mm * per_mm * column_step - (a + b) * half
        row += down_mm * per_mm * row_step - (c + d) * half
        return (a, b, column), (c, d, row)

    def _alike(self) -> Iterator[tuple[int, int]]:
        """First and end of runs of slices that are sampled at the same pixels, as those of an upright stack are."""
        first, grids = 0, self.grids
        for place, grid in enumerate(grids):
            begun = grids[first]
            is_near = grid == begun or all(abs(a - b) <= SAME_PX for a, b in zip(begun, grid, strict=True))
            if place - first == SLICES_AT_ONCE or not is_near:
                yield first, place
                first = place
        yield first, len(grids)


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
    # Contiguous ones are interleaved at a fifth of the time.
    patches = [np.ascontiguousarray(image[top:bottom, left:right]) for image in slices]
    matrix = np.array([[a, b, column - left], [c, d, row - top]])

    def sampled(image: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
        if finer == 1:
            return cv2.warpAffine(image, matrix, (size, size), into, INTERPOLATION, cv2.BORDER_CONSTANT)
        fine = cv2.warpAffine(image, matrix, (reach, reach), None, INTERPOLATION, cv2.BORDER_CONSTANT)
        return cv2.resize(fine, (size, size), into, interpolation=cv2.INTER_AREA)

    if len(patches) < FEWEST_AT_ONCE:
        for patch, image in zip(patches, out, strict=True):
            sampled(patch, image)
    else:
        spare = SLICES_AT_ONCE - len(patches)  # three channels take longer than four
        channels = sampled(cv2.merge([*patches, *patches[-1:] * spare]))
        cv2.split(channels, [*out, *[np.empty((size, size), np.uint8)] * spare])


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
