"""Images of one series → stacks of one contrast: grouping, order, one grey scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..problems import Report
from .contrasts import Places, told_apart, usual_step_mm
from .geometry import Grids, body_plane, canonical, group_parallel, tilts_deg
from .grey_window import grey_window, to_uint8
from .images import Image
from .placing import SAME_PLACE_MM
from .rescaling import one_scale
from .study import Stack

# Beyond this a slice belongs to another body plane: a scout image.  Oblique axial slices of L5/S1 reach 50°.
LARGEST_TILT_DEG = 60.0


def build_stacks(
    series_id: str, kind: str, images: Sequence[Image], grids: Grids, assumed: bool, report: Report
) -> list[Stack]:
    """Canonical stacks of a series' images, ordered along the body; images left out are Problems."""
    if not images:
        return []
    grids, pixels = canonical(grids, [image.words for image in images], kind)
    kept = without_scouts(images, grids, kind, report)
    groups = group_parallel(grids.take(kept), [pixels[index].shape for index in kept])
    stacks = []
    for group in groups:
        for part in _parts([kept[index] for index in group], images, grids, pixels, kind, report):
            slices = one_scale([images[index] for index in part], [pixels[index] for index in part], report)
            window = grey_window(slices)
            if window[0] == window[1]:
                detail = f"all {len(slices)} slices of a stack have one value"
                report.add("constant-pixels", detail, images[part[0]].file)
            planes, instances = tuple(grids.take(part).planes()), tuple(images[index].instance for index in part)
            stacks.append(Stack(series_id, kind, to_uint8(slices, window), planes, instances, assumed))
    return sorted(stacks, key=lambda stack: (stack.positions_mm.mean(), stack.instances))


def without_scouts(images: Sequence[Image], grids: Grids, kind: str, report: Report) -> list[int]:
    """Indices of the slices of the kind's body plane; all of them where there is none."""
    tilts = tilts_deg(grids, kind)
    if tilts.min() > LARGEST_TILT_DEG:
        report.add("unexpected-orientation", f"all slices are {tilts.min():.0f}° or more off {body_plane(kind)}: kept")
        return list(range(len(images)))
    for image, tilt in zip(images, tilts, strict=True):
        if tilt > LARGEST_TILT_DEG:
            report.add("off-orientation", f"left out: {tilt:.0f}° off {body_plane(kind)}", image.file)
    return np.flatnonzero(tilts <= LARGEST_TILT_DEG).tolist()


def _parts(
    members: Sequence[int],
    images: Sequence[Image],
    grids: Grids,
    pixels: Sequence[np.ndarray],
    kind: str,
    report: Report,
) -> list[list[int]]:
    """Parallel slices in parts of one contrast, each along the body; of several at one place the first is kept."""
    height, width = pixels[members[0]].shape
    centres = grids.to_patient((height - 1) / 2, (width - 1) / 2)[members]  # (S, 3)
    places = Places(centres, centres @ -grids.normals[members].mean(0))
    if places.are_apart and len({images[index].contrast.echo_ms for index in members}) == 1:
        return [[members[place] for place in places.order]]
    parts = told_apart([images[index] for index in members], places, kind, report)
    return [[members[place] for place in _in_order(part, places, members, images, report)] for part in parts]


def _in_order(
    part: Sequence[int], places: Places, members: Sequence[int], images: Sequence[Image], report: Report
) -> list[int]:
    centres = places.centres_mm[part]
    apart_mm = np.linalg.norm(centres[:, None] - centres, axis=2)  # (S, S)
    left_out: set[int] = set()
    for first, other in np.argwhere(np.triu(apart_mm < SAME_PLACE_MM, 1)).tolist():
        if first not in left_out:
            left_out.add(other)
    for index in sorted(left_out):
        report.add("duplicate-slice", "left out: another slice is at the same place", images[members[part[index]]].file)
    kept = [place for index, place in enumerate(part) if index not in left_out]
    crowded_mm = places.crowded_steps_mm(kept)
    if len(crowded_mm):
        usual = f"where {usual_step_mm(places.steps_mm(kept)):.2g} mm are usual"
        report.add("crowded-slices", f"{len(crowded_mm)} steps of at most {max(crowded_mm):.2g} mm, {usual}")
    return places.ordered(kept)
