"""Images of one series → stacks: assumed geometry where there is none, grouping, order, one grey scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..problems import Report
from .geometry import CANONICAL_AXES, Grids, body_plane, canonical, group_parallel, tilts_deg
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


def grids_of(images: Sequence[Image]) -> Grids:
    """The pixel grids of images whose position, orientation and spacing are known."""
    positions = np.array([image.position_mm for image in images], float).reshape(-1, 3)
    cosines = np.array([image.orientation for image in images], float).reshape(-1, 6)
    spacings = np.array([image.spacing_mm for image in images], float).reshape(-1, 2)
    return Grids(positions, cosines[:, :3] * spacings[:, 1:], cosines[:, 3:] * spacings[:, :1])


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
    series_id: str, kind: str, images: Sequence[Image], grids: Grids, assumed: bool, report: Report
) -> list[Stack]:
    """Canonical stacks of a series' images, ordered along the body; images left out are Problems."""
    if not images:
        return []
    grids, pixels = canonical(grids, [image.words for image in images], kind)
    kept = _without_scouts(images, grids, kind, report)
    groups = group_parallel(grids.take(kept), [pixels[index].shape for index in kept])
    stacks = []
    for group in groups:
        members = _in_order([kept[index] for index in group], images, grids, pixels[kept[group[0]]].shape, report)
        slices = _one_scale([images[index] for index in members], [pixels[index] for index in members])
        window = grey_window(slices)
        if window[0] == window[1]:
            detail = f"all {len(slices)} slices of a stack have one value"
            report.add("constant-pixels", detail, images[members[0]].file)
        planes, instances = tuple(grids.take(members).planes()), tuple(images[index].instance for index in members)
        stacks.append(Stack(series_id, kind, to_uint8(slices, window), planes, instances, assumed))
    return sorted(stacks, key=lambda stack: (stack.positions_mm.mean(), stack.instances))


def _without_scouts(images: Sequence[Image], grids: Grids, kind: str, report: Report) -> list[int]:
    """Indices of the slices of the kind's body plane; all of them where there is none."""
    tilts = tilts_deg(grids, kind)
    if tilts.min() > LARGEST_TILT_DEG:
        report.add("unexpected-orientation", f"all slices are {tilts.min():.0f}° or more off {body_plane(kind)}: kept")
        return list(range(len(images)))
    for image, tilt in zip(images, tilts, strict=True):
        if tilt > LARGEST_TILT_DEG:
            report.add("off-orientation", f"left out: {tilt:.0f}° off {body_plane(kind)}", image.file)
    return np.flatnonzero(tilts <= LARGEST_TILT_DEG).tolist()


def _in_order(
    members: Sequence[int], images: Sequence[Image], grids: Grids, shape: tuple[int, ...], report: Report
) -> list[int]:
    """The indices `members` of a stack's slices along the body; of several at one place the first is kept."""
    centres = grids.to_patient((shape[0] - 1) / 2, (shape[1] - 1) / 2)[members]  # (S, 3)
    apart_mm = np.linalg.norm(centres[:, None] - centres, axis=2)  # (S, S)
    left_out: set[int] = set()
    for first, other in np.argwhere(np.triu(apart_mm < SAME_PLACE_MM, 1)).tolist():
        if first not in left_out:
            left_out.add(other)
    for place in sorted(left_out):
        report.add("duplicate-slice", "left out: another slice is at the same place", images[members[place]].file)
    order = np.argsort(centres @ -grids.normals[members].mean(0), kind="stable").tolist()
    return [members[place] for place in order if place not in left_out]


def _one_scale(images: Sequence[Image], slices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(H, W) uint16 slices of images on one increasing linear scale of the true values.

    Files with equal slope and intercept need no arithmetic, as the grey window cancels these.
    """
    scales = {(image.slope, image.intercept) for image in images}
    rising = images[0].slope > 0
    if len(scales) == 1 and rising and all(words.flags.c_contiguous for words in slices):
        return list(slices)
    volume = np.stack(slices)  # (S, H, W)
    if len(scales) == 1:
        return list(volume if rising else np.invert(volume, out=volume))
    values = volume.astype(np.float32)
    for words, image in zip(values, images, strict=True):
        words *= image.slope
        words += image.intercept
    low, high = float(values.min()), float(values.max())
    values -= low
    values *= 65535 / (high - low or 1.0)
    return list(np.rint(values, out=values).astype(np.uint16))
