"""The geometry of a series' images: what the files say, part by part, and a standard one for what none says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..problems import Report
from .geometry import CANONICAL_AXES, body_plane
from .images import Image

# For series without geometry: mean values of the competition's series.
ASSUMED_SPACING_MM = 0.6
ASSUMED_SLICE_STEP_MM = 4.5
SAME_PLACE_MM = 0.01
# So many files at one place are repeats of a slice, or their position means nothing.
LEAST_ALIKE = 3


def with_geometry(images: Sequence[Image], kind: str, report: Report) -> tuple[list[Image], bool]:
    """The images with a geometry.  Second: whether a part of it was assumed for all.

    Positions come from the files, else from slice locations, else from the files' order; orientation and spacing from
    the files, else standard ones.  Where some files lack what others have, they are left out.
    """
    candidates = _with_located(_without_empty_positions(images, report), report)
    located = [image for image in candidates if image.position_mm is not None and image.orientation is not None]
    assumed = False
    if images and not located:
        located, assumed = _assume(candidates, kind, report), True
    if located and all(image.spacing_mm is None for image in located):
        report.add("assumed-spacing", f"no file has a usable pixel spacing: {ASSUMED_SPACING_MM} mm")
        spacing = (ASSUMED_SPACING_MM, ASSUMED_SPACING_MM)
        located, assumed = [replace(image, spacing_mm=spacing) for image in located], True
    kept = [image for image in located if image.spacing_mm is not None]
    if len(kept) < len(images):
        files = Counter(image.file for image in images) - Counter(image.file for image in kept)
        for file in files.elements():
            report.add("no-geometry", "left out: no usable position, orientation or pixel spacing", file)
    return kept, assumed


def _without_empty_positions(images: Sequence[Image], report: Report) -> Sequence[Image]:
    """Without a position that most files share though they show different places: it means nothing."""
    if len({image.position_mm for image in images}) == len(images):
        return images
    counts = Counter(image.position_mm for image in images if image.position_mm is not None)
    position, count = counts.most_common(1)[0] if counts else (None, 0)
    if count < LEAST_ALIKE or 2 * count <= len(images):
        return images
    alike = [image for image in images if image.position_mm == position]
    locations, contrasts = {image.slice_location_mm for image in alike}, {image.contrast for image in alike}
    if locations != {None} and len(locations) == 1 or len(contrasts) == count:
        return images  # one slice, many times
    report.add("assumed-geometry", f"{count} of {len(images)} files have one position: it is not used")
    return [replace(image, position_mm=None) if image.position_mm == position else image for image in images]


def _with_located(images: Sequence[Image], report: Report) -> Sequence[Image]:
    """Positions of files that lack them, from their slice locations and a parallel file that has both."""
    lacking = [one for one in images if one.position_mm is None and None not in (one.orientation, one.location)]
    if not lacking:
        return images
    lacking = [one for one in lacking if one.slice_location_mm is not None]
    known = [one for one in images if one.position_mm is not None and one.slice_location_mm is not None]
    found: dict[int, Image] = {}
    for image in lacking:
        alike = [one for one in known if one.orientation is not None and _is_parallel(one, image)]
        if alike:
            found[id(image)] = replace(image, position_mm=_moved(alike, image))
            report.add("assumed-geometry", "no usable position: that of its slice location", image.file)
    return [found.get(id(image), image) for image in images]


def _is_parallel(one: Image, other: Image) -> bool:
    return bool(np.allclose(one.orientation, other.orientation, atol=0.01))  # type: ignore[arg-type]


def _moved(known: Sequence[Image], image: Image) -> tuple[float, ...]:
    """The nearest known position, moved along the normal to the image's slice location."""
    normal, location = _normal(image), _location(image)
    nearest = min(known, key=lambda one: abs(_location(one) - location))
    along = np.array([np.array(one.position_mm) @ normal for one in known])
    locations = np.array([_location(one) for one in known])
    # Vendors count slice locations along the normal or against it.
    sign = np.sign(((along - along.mean()) * (locations - locations.mean())).sum()) or 1.0
    return tuple(np.array(nearest.position_mm) + sign * (location - _location(nearest)) * normal)


def _normal(image: Image) -> np.ndarray:
    cosines = np.array(image.orientation)
    normal: np.ndarray = np.cross(cosines[:3], cosines[3:])
    return normal


def _location(image: Image) -> float:
    assert image.slice_location_mm is not None
    return image.slice_location_mm


def _assume(images: Sequence[Image], kind: str, report: Report) -> list[Image]:
    """A geometry for images of which none has both position and orientation."""
    columns_to, rows_to, along = CANONICAL_AXES[body_plane(kind)]
    images = sorted(images, key=lambda image: image.order)
    has_orientation = any(image.orientation is not None for image in images)
    if not has_orientation and (placed := _spread(images, along)):
        report.add("assumed-geometry", f"no file has a usable orientation: the standard one of {body_plane(kind)}")
        return [replace(image, orientation=(*columns_to, *rows_to)) for image in placed]
    what = "position" if has_orientation else "position and orientation"
    by_location = len({image.slice_location_mm for image in images} - {None}) > 1
    by_location = by_location and all(image.slice_location_mm is not None for image in images)
    how = "by slice location" if by_location else "by file order"
    report.add("assumed-geometry", f"no file has a usable {what}: standard ones, {how}")
    placed, last = [], next((image.orientation for image in images if image.orientation), (*columns_to, *rows_to))
    for index, image in enumerate(images):
        last = image.orientation or last
        oriented = replace(image, orientation=last)
        normal = _normal(oriented)
        if by_location:
            centre = _location(image) * normal
        else:
            step = ASSUMED_SLICE_STEP_MM * (np.sign(normal @ along) or 1.0)
            centre = (index - (len(images) - 1) / 2) * step * normal
        placed.append(replace(oriented, position_mm=_corner(oriented, centre)))
    return placed


def _spread(images: Sequence[Image], along: np.ndarray) -> list[Image]:
    """The images with a position, where these differ along the body as those of a stack do; else none."""
    placed = [image for image in images if image.position_mm is not None]
    if 2 * len(placed) <= len(images) or len(placed) < 2:
        return []
    positions = np.array([image.position_mm for image in placed])
    spread = np.ptp(positions, axis=0)
    return placed if np.ptp(positions @ along) > max(SAME_PLACE_MM, np.linalg.norm(spread) / 2) else []


def _corner(image: Image, centre: np.ndarray) -> tuple[float, ...]:
    """The position of pixel (0, 0) of an image around a centre."""
    between_rows, between_columns = image.spacing_mm or (ASSUMED_SPACING_MM, ASSUMED_SPACING_MM)
    cosines, (height, width) = np.array(image.orientation), image.words.shape
    corner = -(height - 1) / 2 * between_rows * cosines[3:] - (width - 1) / 2 * between_columns * cosines[:3]
    return tuple(corner + centre)
