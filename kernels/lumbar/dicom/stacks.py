"""Images of one series → stacks: assumed geometry where there is none, grouping, order, one grey scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..problems import Report
from .geometry import CANONICAL_AXES, Plane, body_plane, canonical, group_parallel, tilt_deg
from .grey_window import grey_window, to_uint8
from .study import Stack

# For series without geometry: mean values of the competition's series.
ASSUMED_SPACING_MM = 0.6
ASSUMED_SLICE_STEP_MM = 4.5
# Beyond this a slice belongs to another body plane: a scout image.  Oblique axial slices of L5/S1 reach 50°.
LARGEST_TILT_DEG = 60.0
SAME_PLACE_MM = 0.01


@dataclass(frozen=True, eq=False)
class Image:
    """One decoded image of a series, in the file's own frame."""

    file: str
    instance: int
    """The file's number (its name, in the competition)."""
    order: tuple[int, int]
    """Instance number of the header, then the file's number: the order where there is no geometry."""
    words: np.ndarray
    """(H, W) uint16"""
    slope: float
    intercept: float
    """Value = slope × word + intercept, increasing with brightness."""
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None

    def plane(self) -> Plane:
        """The pixel grid; position, orientation and spacing must be known."""
        assert self.position_mm is not None and self.orientation is not None and self.spacing_mm is not None
        between_rows, between_columns = self.spacing_mm
        cosines = np.array(self.orientation)
        return Plane(np.array(self.position_mm), cosines[:3] * between_columns, cosines[3:] * between_rows)


def with_geometry(images: Sequence[Image], kind: str, report: Report) -> tuple[list[Image], bool]:
    """The images with a geometry; if none has one, all with an assumed geometry.  Second: whether it was assumed."""
    located = [image for image in images if image.position_mm is not None and image.orientation is not None]
    assumed = False
    if images and not located:
        report.add("assumed-geometry", "no file has a usable position and orientation: standard ones, by file order")
        located, assumed = _assume_positions(images, kind), True
    if located and all(image.spacing_mm is None for image in located):
        report.add("assumed-spacing", f"no file has a usable pixel spacing: {ASSUMED_SPACING_MM} mm")
        spacing = (ASSUMED_SPACING_MM, ASSUMED_SPACING_MM)
        located, assumed = [replace(image, spacing_mm=spacing) for image in located], True
    kept = [image for image in located if image.spacing_mm is not None]
    names = {image.file for image in kept}
    for image in images:
        if image.file not in names:
            report.add("no-geometry", "left out: no usable position, orientation or pixel spacing", image.file)
    return kept, assumed


def _assume_positions(images: Sequence[Image], kind: str) -> list[Image]:
    """Standard orientation, slices in order along the stack, centred on the origin."""
    columns_to, rows_to, along = CANONICAL_AXES[body_plane(kind)]
    placed = []
    for index, image in enumerate(sorted(images, key=lambda image: image.order)):
        spacing = image.spacing_mm or (ASSUMED_SPACING_MM, ASSUMED_SPACING_MM)
        height, width = image.words.shape
        corner = -(height - 1) / 2 * spacing[0] * rows_to - (width - 1) / 2 * spacing[1] * columns_to
        corner = corner + (index - (len(images) - 1) / 2) * ASSUMED_SLICE_STEP_MM * along
        placed.append(replace(image, position_mm=tuple(corner), orientation=(*columns_to, *rows_to)))
    return placed


def build_stacks(
    series_id: str, kind: str, images: Sequence[Image], planes: Sequence[Plane], assumed: bool, report: Report
) -> list[Stack]:
    """Canonical stacks of a series' images, ordered along the body; images left out are Problems."""
    slices = []
    for image, plane in zip(images, planes, strict=True):
        upright, words = canonical(plane, image.words, kind)
        slices.append((replace(image, words=words), upright))
    slices = _without_scouts(slices, kind, report)
    groups = group_parallel([plane for _, plane in slices], [image.words.shape for image, _ in slices])
    stacks = [_stack(series_id, kind, [slices[index] for index in group], assumed, report) for group in groups]
    return sorted(stacks, key=lambda stack: (stack.positions_mm.mean(), stack.instances))


def _without_scouts(slices: list[tuple[Image, Plane]], kind: str, report: Report) -> list[tuple[Image, Plane]]:
    """Drop slices of another body plane, unless all are."""
    tilts = [tilt_deg(plane, kind) for _, plane in slices]
    if tilts and min(tilts) > LARGEST_TILT_DEG:
        report.add("unexpected-orientation", f"all slices are {min(tilts):.0f}° or more off {body_plane(kind)}: kept")
        return slices
    for (image, _), tilt in zip(slices, tilts, strict=True):
        if tilt > LARGEST_TILT_DEG:
            report.add("off-orientation", f"left out: {tilt:.0f}° off {body_plane(kind)}", image.file)
    return [one for one, tilt in zip(slices, tilts, strict=True) if tilt <= LARGEST_TILT_DEG]


def _stack(series_id: str, kind: str, slices: Sequence[tuple[Image, Plane]], assumed: bool, report: Report) -> Stack:
    height, width = slices[0][0].words.shape
    centres = np.stack([plane.to_patient((height - 1) / 2, (width - 1) / 2) for _, plane in slices])
    along = -np.mean([plane.normal for _, plane in slices], axis=0)
    kept: list[int] = []
    for index, (image, _) in enumerate(slices):
        if kept and np.linalg.norm(centres[kept] - centres[index], axis=1).min() < SAME_PLACE_MM:
            report.add("duplicate-slice", "left out: another slice is at the same place", image.file)
        else:
            kept.append(index)
    kept.sort(key=lambda index: float(centres[index] @ along))
    images = [slices[index][0] for index in kept]
    slices_words = _one_scale(images)
    window = grey_window(slices_words)
    if window[0] == window[1]:
        report.add("constant-pixels", f"all {len(images)} slices of a stack have one value", images[0].file)
    planes = tuple(slices[index][1] for index in kept)
    return Stack(series_id, kind, to_uint8(slices_words, window), planes, tuple(i.instance for i in images), assumed)


def _one_scale(images: Sequence[Image]) -> list[np.ndarray]:
    """(H, W) uint16 slices on one increasing linear scale of the true values.

    Files with equal slope and intercept need no arithmetic, as the grey window cancels these.
    """
    scales = {(image.slope, image.intercept) for image in images}
    if len(scales) == 1:
        rising = images[0].slope > 0
        return [np.ascontiguousarray(image.words if rising else ~image.words) for image in images]
    volume = np.stack([image.words for image in images]).astype(np.float32)
    for words, image in zip(volume, images, strict=True):
        words *= image.slope
        words += image.intercept
    low, high = float(volume.min()), float(volume.max())
    volume -= low
    volume *= 65535 / (high - low or 1.0)
    return list(np.rint(volume, out=volume).astype(np.uint16))
