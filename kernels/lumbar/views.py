"""A ViewRequest → pixels: which stack, which slices, and a crop in square millimetres of each.

Pixels are sampled through fixed-point coordinates (1/32 pixel, as OpenCV's own tables).  That makes a sample depend on
nothing but its own place: a wide crop holds the bytes of a narrow one, a mirrored crop mirrors them, and OpenCV 4 and 5
give the same bytes, which their warpAffine does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import cv2
import numpy as np
import torch

from .geometry import Plane, body_plane, lift_points, project_points
from .labels import Unit, row_of
from .specs import SliceChoice, ViewRequest
from .study import Stack, Study

Landmarks = Mapping[str, np.ndarray]
Pixels = TypeVar("Pixels", np.ndarray, torch.Tensor)

FRACTIONS = 32  # sub-pixel steps of cv2.remap's fixed-point tables
FARTHEST_PX = 30000  # what a 16-bit coordinate can hold
# Shrunk by more than this, several samples a pixel are averaged, as plain linear sampling would alias.
LARGEST_PLAIN_SHRINK = 1.5


@dataclass(frozen=True, eq=False)
class View:
    """One input of a network before normalisation."""

    pixels: np.ndarray
    """(slice, size_px, size_px) uint8"""
    planes: tuple[Plane, ...]
    """One a slice, of the view's own pixel grid."""
    series_id: str


def cut(study: Study, request: ViewRequest, unit: Unit, landmarks: Landmarks) -> View | None:
    """The view that a request asks for at a unit.

    None where it is missing: no such series, a landmark unknown, or the nearest plane too far away.
    """
    stacks = study.of_kind(request.series)
    centre = _mean(landmarks, request.centre, unit)
    if not stacks or (request.centre and centre is None):
        return None
    if request.slices.by == "landmark":
        near = _mean(landmarks, request.slices.near, unit) if request.slices.near else centre
        found = None if near is None else _nearest_plane(stacks, near, request.slices.max_distance_mm)
        if found is None:
            return None
        stack, index = found
    else:
        stack = min(stacks, key=lambda stack: (-len(stack.planes), stack.series_id))
        wanted_mm = _wanted_position_mm(stack, request.slices, unit, request.side(unit))
        if np.abs(stack.positions_mm - wanted_mm).min() > (request.slices.max_distance_mm or math.inf):
            return None
        index = float(np.interp(wanted_mm, stack.positions_mm, np.arange(len(stack.planes))))
    view = _sample(stack, _window(stack, index, request.slices.count), centre, request)
    return _mirrored(view, request.series) if request.mirror_right and request.side(unit) == "right" else view


def lift(view: View, points: np.ndarray) -> np.ndarray:
    """(K, 3) patient mm of (K, 3) slice, row, column in the view's pixels; fractional slices lie between planes."""
    return lift_points(view.planes, points)


def project(view: View, points_mm: np.ndarray) -> np.ndarray:
    """(K, 3) slice, row, column in the view's pixels of (K, 3) patient mm; see geometry.project_points."""
    return project_points(view.planes, points_mm)


def mirror_pixels(pixels: Pixels, series_kind: str) -> Pixels:
    """(..., slice, H, W) as the mirrored patient shows it: sagittal slices in reversed order, axial columns flipped."""
    axis = -3 if body_plane(series_kind) == "sagittal" else -1
    if isinstance(pixels, torch.Tensor):
        return pixels.flip(axis)
    return np.ascontiguousarray(np.flip(pixels, axis))


def _mirrored(view: View, series_kind: str) -> View:
    pixels = mirror_pixels(view.pixels, series_kind)
    if body_plane(series_kind) == "sagittal":
        return View(pixels, view.planes[::-1], view.series_id)
    last = pixels.shape[-1] - 1
    return View(pixels, tuple(plane.grid(0, last, column_step=-1) for plane in view.planes), view.series_id)


def _mean(landmarks: Landmarks, names: Sequence[str], unit: Unit) -> np.ndarray | None:
    """Mean of the named landmarks in mm; None where one of them is unknown, or none is named."""
    points = [landmarks.get(row_of(name, unit)) for name in names]
    known = [point for point in points if point is not None and np.isfinite(point).all()]
    return np.mean(known, axis=0) if known and len(known) == len(points) else None


def _nearest_plane(
    stacks: Sequence[Stack], point_mm: np.ndarray, farthest_mm: float | None
) -> tuple[Stack, float] | None:
    """The stack with the plane that is nearest to the point and has it inside its field, and where along it."""
    best: tuple[float, Stack, int] | None = None
    for stack in stacks:
        rows, columns, distances = stack.to_pixels(point_mm).T
        height, width = stack.pixels.shape[1:]
        inside = (np.abs(rows - stack.centre[0]) <= height / 2) & (np.abs(columns - stack.centre[1]) <= width / 2)
        distances = np.where(inside, np.abs(distances), np.inf)
        nearest = int(distances.argmin())
        if np.isfinite(distances[nearest]) and (best is None or distances[nearest] < best[0]):
            best = (float(distances[nearest]), stack, nearest)
    if best is None or best[0] > (farthest_mm or math.inf):
        return None
    _, stack, nearest = best
    index = float(np.interp(stack.position_mm(point_mm), stack.positions_mm, np.arange(len(stack.planes))))
    return stack, min(max(index, nearest - 0.49), nearest + 0.49)


def _wanted_position_mm(stack: Stack, choice: SliceChoice, unit: Unit, side: str | None) -> float:
    """Position along the stack around which slices are wanted: its middle, or an offset from it to the unit's side."""
    middle = float(stack.positions_mm[0] + stack.positions_mm[-1]) / 2
    if choice.by == "middle":
        return middle
    offset = choice.offset_mm
    if isinstance(offset, dict):
        if unit.level not in offset:
            raise ValueError(f"offset_mm names no offset for level {unit.level}")
        offset = offset[unit.level]
    assert offset is not None  # SliceChoice holds that
    return middle - offset if side == "right" else middle + offset


def _window(stack: Stack, index: float, count: int) -> np.ndarray:
    """(count,) consecutive slice indices whose middle is nearest to a fractional index; edge slices are repeated.

    Of two equally near windows the one nearer to the middle of the stack, then the one nearer to x = 0: choices that a
    mirrored study repeats.
    """
    last = len(stack.planes) - 1
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
    return np.clip(np.arange(low, low + count), 0, last)


def _sample(stack: Stack, window: np.ndarray, centre_mm: np.ndarray | None, request: ViewRequest) -> View:
    """Crop every slice of the window around the foot of the centre on its plane; None = around the slice's middle."""
    size = request.size_px
    size_mm = request.size_mm
    if size_mm is None:
        size_mm = float(
            max(np.multiply(stack.pixels.shape[1:], stack.planes[index].spacing_mm).max() for index in window)
        )
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
    return View(pixels, tuple(planes), stack.series_id)


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
