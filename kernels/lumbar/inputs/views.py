"""A ViewRequest → pixels: which stacks, which slices, and a crop in square millimetres of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch

from ..dicom.geometry import CANONICAL_AXES, Plane, between, body_plane
from ..dicom.study import Stack, Study, longest
from ..labels import Unit, row_of
from ..specs import SliceChoice, ViewRequest
from .crops import Crops, longer_side_mm
from .landmark_maps import draw_marks

Landmarks = Mapping[str, np.ndarray]
Pixels = TypeVar("Pixels", np.ndarray, torch.Tensor)
# Planes whose distances differ by less are ties: the last bits differ between processors.
SAME_MM = 1e-6


@dataclass(frozen=True, eq=False)
class View:
    """One input of a network before normalisation; its pixels and planes are made when first asked for."""

    request: ViewRequest
    parts: tuple[Crops, ...]
    """Crops of one stack, or of several, one after the other."""
    index: float | None = None
    """Fractional index of the stack's slice on which the window is centred; None for whole stacks."""
    positions: np.ndarray | None = None
    """(slice,) fractional indices of crops, between which the slices are interpolated; None = the crops themselves,
    then blank slices."""
    mirrored: bool = False
    """Whether a right-sided view is shown as a left one."""
    before: int = 0
    """Blank slices before the crops, before the view is mirrored."""
    marks: tuple[np.ndarray | None, ...] = ()
    """Landmarks (3,) mm that are drawn in place of the pixels; these are then not even sampled."""

    @property
    def series_id(self) -> str:
        """The series of the first slice."""
        return self.parts[0].stack.series_id

    @cached_property
    def pixels(self) -> np.ndarray:
        """(slice, size_px, size_px) uint8"""
        pixels = np.empty((self.request.slices.count, self.request.size_px, self.request.size_px), np.uint8)
        self.sample(pixels)
        return pixels

    def sample(self, out: np.ndarray) -> None:
        """Fill `out` (slice, size_px, size_px) uint8, contiguous, with the pixels."""
        if self.marks:
            out[:] = draw_marks(self.planes, self.marks, out.shape)
            return
        sagittal = body_plane(self.request.series) == "sagittal"
        ordered = out[::-1] if self.mirrored and sagittal else out
        if self.positions is not None:
            (part,) = self.parts  # stacks together are padded
            _interpolate(part.pixels(), self.positions, ordered)
        else:
            end = self.before
            ordered[:end] = 0
            for part in self.parts:
                first, end = end, end + len(part.window)
                part.sample(ordered[first:end])
            ordered[end:] = 0
        if self.mirrored and not sagittal:
            out[:] = np.flip(out, -1)

    @cached_property
    def planes(self) -> tuple[Plane, ...]:
        """One per slice, of the view's own pixel grid; blank slices have none."""
        planes = tuple(plane for part in self.parts for plane in part.planes())
        if self.positions is not None:
            planes = tuple(between(planes, position) for position in self.positions)
        if not self.mirrored:
            return planes
        if body_plane(self.request.series) == "sagittal":
            return planes[::-1]
        return tuple(plane.grid(0, self.request.size_px - 1, column_step=-1) for plane in planes)

    @property
    def first(self) -> int:
        """The slice that the first of `planes` is of."""
        if self.mirrored and body_plane(self.request.series) == "sagittal":
            return self.request.slices.count - self.before - len(self.planes)
        return self.before


def cut(study: Study, request: ViewRequest, unit: Unit, landmarks: Landmarks) -> View | None:
    """The view of a request at a unit; None where the series is missing, a landmark unknown or the plane too far.

    Of a view with marks one of these must be known.
    """
    stacks = study.of_kind(request.series)
    unit = request.place(unit)
    centre = _mean(landmarks, request.centre, unit)
    if not stacks or (request.centre and centre is None):
        return None
    marks = tuple(landmarks.get(row_of(name, unit)) for name in request.marks)
    if marks and all(mark is None for mark in marks):
        return None
    mirrored = request.mirror_right and request.side(unit) == "right"
    if request.slices.by == "all":
        parts, positions = _whole(stacks, request, centre, request.shift_mm(unit))
        return View(request, parts, None, positions, mirrored, 0, marks)
    found = _around(stacks, request, unit, landmarks, centre)
    if found is None:
        return None
    stack, index, feet = found
    window, before = window_at(stack, index, request.slices)
    size_mm = request.size_mm or longer_side_mm(stack, window)
    crops = Crops(stack, window, feet, size_mm, request.size_px, shift_mm=request.shift_mm(unit))
    return View(request, (crops,), index, None, mirrored, before, marks)


def mirror_pixels(pixels: Pixels, series_kind: str) -> Pixels:
    """(..., slice, H, W) of the mirrored patient: sagittal slices in reversed order, axial columns flipped."""
    axis = -3 if body_plane(series_kind) == "sagittal" else -1
    if isinstance(pixels, torch.Tensor):
        return pixels.flip(axis)
    return np.ascontiguousarray(np.flip(pixels, axis))


def turn_pixels(pixels: torch.Tensor, series_kind: str) -> torch.Tensor:
    """(..., slice, H, W) with front and back exchanged: columns of sagittal slices, rows of axial ones."""
    return pixels.flip(-1 if body_plane(series_kind) == "sagittal" else -2)


def _mean(landmarks: Landmarks, names: Sequence[str], unit: Unit) -> np.ndarray | None:
    """Mean of the named landmarks in mm; None where one of them is unknown, or none is named."""
    points = [landmarks.get(row_of(name, unit)) for name in names]
    known = [point for point in points if point is not None and np.isfinite(point).all()]
    if len(known) < len(points) or not known:
        return None
    return np.asarray(known[0]) if len(known) == 1 else np.mean(known, axis=0)


def _whole(
    stacks: Sequence[Stack], request: ViewRequest, centre_mm: np.ndarray | None, shift_mm: tuple[float, float]
) -> tuple[tuple[Crops, ...], np.ndarray | None]:
    """All slices of the longest stack, or of all stacks from head to feet, from patient right to left; and the
    fractional positions at which they are interpolated, if they are."""
    choice = request.slices
    if choice.stacks == "longest":
        stacks = [longest(stacks)]
    along = CANONICAL_AXES[body_plane(request.series)][2]
    stacks = sorted(stacks, key=lambda stack: (float(stack.centres_mm.mean(0) @ along), stack.series_id))
    places = [(stack, index) for stack in stacks for index in range(len(stack.planes))]
    if choice.fit == "pad" and len(places) > choice.count:
        places = [places[index] for index in np.rint(np.linspace(0, len(places) - 1, choice.count)).astype(int)]
    taken = [(stack, np.array([index for other, index in places if other is stack])) for stack in stacks]
    taken = [(stack, indices) for stack, indices in taken if len(indices)]
    size_mm = request.size_mm or max(longer_side_mm(stack, indices) for stack, indices in taken)
    parts = tuple(
        Crops(stack, indices, _feet(stack, centre_mm), size_mm, request.size_px, shift_mm=shift_mm)
        for stack, indices in taken
    )
    positions = np.linspace(0, len(places) - 1, choice.count)
    return parts, None if choice.fit == "pad" else np.round(positions, 9)


def _interpolate(pixels: np.ndarray, positions: np.ndarray, images: np.ndarray) -> None:
    """Fill `images` (P, H, W) uint8 at fractional slices of (S, H, W), between their neighbours."""
    last = len(pixels) - 1
    for position, out in zip(positions, images, strict=True):  # one by one: their floats stay in the caches
        low = int(position)
        share = np.float32(position - low)
        blend = pixels[low] * (1 - share)
        blend += pixels[min(low + 1, last)] * share
        # Half to even, once rounding noise is removed, so that a mirrored stack gives mirrored bytes.
        np.rint(np.round(blend, 3, out=blend), out=out, casting="unsafe")


def _around(
    stacks: Sequence[Stack], request: ViewRequest, unit: Unit, landmarks: Landmarks, centre: np.ndarray | None
) -> tuple[Stack, float, np.ndarray | None] | None:
    """The stack, the fractional index to centre the slices on, and the centre's feet on all slices; None where no
    plane is near enough."""
    choice = request.slices
    if choice.by == "landmark":
        near = _mean(landmarks, choice.near, unit) if choice.near else centre
        found = None if near is None else _nearest_plane(stacks, near, choice.max_distance_mm)
        if found is None or near is centre:
            return found
        return found[0], found[1], _feet(found[0], centre)
    stack = longest(stacks)
    wanted_mm = _wanted_position_mm(stack, choice, unit, request.side(unit))
    if np.abs(stack.positions_mm - wanted_mm).min() > (choice.max_distance_mm or math.inf):
        return None
    index = float(np.interp(wanted_mm, stack.positions_mm, np.arange(len(stack.planes))))
    return stack, index, _feet(stack, centre)


def _feet(stack: Stack, point_mm: np.ndarray | None) -> np.ndarray | None:
    return None if point_mm is None else stack.to_pixels(point_mm)


def _nearest_plane(
    stacks: Sequence[Stack], point_mm: np.ndarray, farthest_mm: float | None
) -> tuple[Stack, float, np.ndarray] | None:
    """The stack with the nearest plane that has the point in its field of view, the fractional index there, and the
    point's feet on all slices."""
    best: tuple[float, Stack, np.ndarray, np.ndarray] | None = None
    for stack in stacks:
        feet = stack.to_pixels(point_mm)
        rows, columns, distances = feet.T
        height, width = stack.pixels.shape[1:]
        inside = (np.abs(rows - stack.centre[0]) <= height / 2) & (np.abs(columns - stack.centre[1]) <= width / 2)
        distances = np.where(inside, np.abs(distances), np.inf)
        nearest = int(distances.argmin())
        if np.isfinite(distances[nearest]) and (best is None or distances[nearest] < best[0] - SAME_MM):
            best = float(distances[nearest]), stack, np.flatnonzero(distances <= distances[nearest] + SAME_MM), feet
    if best is None or best[0] > (farthest_mm or math.inf):
        return None
    _, stack, near, feet = best
    index = float(np.interp(stack.position_mm(point_mm), stack.positions_mm, np.arange(len(stack.planes))))
    # Halfway between two planes `window_at` breaks the tie, alike on any processor.
    return stack, min(max(index, float(near[0]) - 0.49), float(near[-1]) + 0.49), feet


def _wanted_position_mm(stack: Stack, choice: SliceChoice, unit: Unit, side: str | None) -> float:
    """Position along the stack to centre the slices on: its middle, or an offset from it to the unit's side."""
    middle = float(stack.positions_mm[0] + stack.positions_mm[-1]) / 2
    if choice.by == "middle":
        return middle
    offset = choice.offset_mm
    if isinstance(offset, dict):
        if unit.level not in offset:
            raise ValueError(f"offset_mm names no offset for level {unit.level}")
        offset = offset[unit.level]
    assert offset is not None  # checked by SliceChoice
    return middle - offset if side == "right" else middle + offset


def window_at(stack: Stack, index: float, choice: SliceChoice) -> tuple[list[int], int]:
    """`count` consecutive slice indices whose middle is nearest to a fractional index, edge slices repeated; and 0.

    With `within_mm` only those that exist and are that near, and how many of the others come before them.
    Ties: the window nearer to the middle of the stack, then the one nearer to x = 0, so that mirroring commutes.
    """
    last, count = len(stack.planes) - 1, choice.count
    if choice.within_mm is not None:
        index = min(max(index, 0.0), float(last))  # so that one of the slices exists
    start = index - (count - 1) / 2
    low = math.floor(start)
    if abs(start - low - 0.5) < 1e-6:

        def preference(first: int) -> tuple[float, float, int]:
            middle = first + (count - 1) / 2
            x_mm = float(np.interp(middle, np.arange(last + 1), stack.centres_mm[:, 0]))
            return abs(middle - last / 2), round(abs(x_mm), 6), first

        low = min((low, low + 1), key=preference)
    else:
        low = round(start)
    places = range(low, low + count)
    if choice.within_mm is None:
        return [min(max(place, 0), last) for place in places], 0
    positions_mm = stack.positions_mm
    centre_mm = np.interp(index, np.arange(last + 1), positions_mm)
    away_mm = {place: abs(positions_mm[place] - centre_mm) for place in places if 0 <= place <= last}
    farthest_mm = max(choice.within_mm, min(away_mm.values())) + SAME_MM
    near = [place for place, its_mm in away_mm.items() if its_mm <= farthest_mm]
    return near, near[0] - low
