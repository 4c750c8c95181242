"""Patient points to signal: muscles, fat, vessels and skin around the spine, then the spine itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .bones import paint_body_and_disc, paint_posterior_elements
from .canal import paint_canal, paint_foramina
from .curve import DISCS, Floats, SpineCoordinates
from .sizes import WALL_MM, Anatomy
from .tissue import Patch, Tissue, ellipse

_NOWHERE = np.zeros(3)
_BIFURCATION = DISCS.index("l4_l5")


def signal_at(
    points: NDArray[np.floating],
    anatomy: Anatomy,
    table: Floats,
    edge: float = 0.8,
    shifts: tuple[NDArray[np.float64], ...] = (_NOWHERE,),
) -> Floats:
    """Signal (...) at patient points (..., 3) in mm for a table of tissue signals; borders blend over `edge`.

    Near the spine it is the mean over the points moved by each of `shifts` (3,) mm: the thickness of a slice.
    """
    shape = points.shape[:-1]
    points = points.reshape(-1, 3)
    signal = np.full(len(points), table[Tissue.AIR], np.float32)
    skin = _skin_distance(points, anatomy)
    body = np.flatnonzero(skin < edge)
    points = points[body]
    whole, _ = _patch(points, anatomy, np.full(len(points), table[Tissue.FAT], np.float32), table, edge)
    _paint_surroundings(whole, anatomy, points, skin[body])
    near = (np.abs(whole.left) < 48.0) & (whole.posterior > -27.0) & (whole.posterior < WALL_MM + 57.0)
    spine = np.flatnonzero(near)
    mean = np.zeros(len(spine), np.float32)
    for shift in shifts:
        moved = points[spine] + shift.astype(np.float32)
        part, discs = _patch(moved, anatomy, whole.signal[spine], table, edge)
        _paint_discs(part, anatomy, discs)
        mean += part.signal / len(shifts)
    whole.signal[spine] = mean
    signal[body] = whole.signal
    return signal.reshape(shape)


def _patch(
    points: NDArray[np.floating], anatomy: Anatomy, signal: Floats, table: Floats, edge: float
) -> tuple[Patch, NDArray[np.intp]]:
    """A patch at points (N, 3) that begins with `signal`, and the nearest disc of each point."""
    place = anatomy.curve.locate(points)
    posterior = place.posterior + _slip(place, anatomy)
    ladder = place.disc.astype(np.float32) - place.fraction
    frame = (place.left, posterior, place.height, place.fraction, ladder)
    return Patch(*frame, signal=signal, table=table, edge=edge), place.disc


def _paint_discs(patch: Patch, anatomy: Anatomy, discs: NDArray[np.intp]) -> None:
    for disc in np.flatnonzero(np.bincount(discs)):
        chosen = np.flatnonzero(discs == disc)
        part = patch.part(chosen)
        _paint_spine(part, anatomy, int(disc))
        patch.put(chosen, part)


def _slip(place: SpineCoordinates, anatomy: Anatomy) -> Floats:
    """Shift (mm) by which slipped vertebrae stand in front: the slips of all discs below a point."""
    slips = np.array([level.slip for level in anatomy.levels])
    below = np.cumsum(slips[::-1])[::-1]
    share = np.clip(0.5 + place.height / 8.0, 0.0, 1.0)
    return np.asarray((below - slips)[place.disc] + share * slips[place.disc], np.float32)


def _paint_spine(patch: Patch, anatomy: Anatomy, disc: int) -> None:
    """The spine about one disc; what is painted later lies over what was painted before."""
    level = anatomy.levels[disc]
    side, back = np.abs(patch.left), patch.posterior - WALL_MM
    _paint_within(patch, back > -6.0, lambda part: paint_posterior_elements(part, level))
    if level.lumbar:
        beside = (side > 7.0) & (side < 30.0) & (np.abs(back - 4.0) < 11.0)
        _paint_within(patch, beside, lambda part: paint_foramina(part, level))
    _paint_within(patch, (side < 14.0) & (np.abs(back - 9.0) < 12.0), lambda part: paint_canal(part, anatomy, disc))
    _paint_within(patch, back < 9.0, lambda part: paint_body_and_disc(part, anatomy, level))


def _paint_within(patch: Patch, region: NDArray[np.bool_], paint: Callable[[Patch], None]) -> None:
    """Paint only the points of a region: structures are small, points are many."""
    chosen = np.flatnonzero(region)
    if len(chosen):
        part = patch.part(chosen)
        paint(part)
        patch.put(chosen, part)


def _paint_surroundings(patch: Patch, anatomy: Anatomy, points: NDArray[np.floating], skin: Floats) -> None:
    """Abdomen, muscles, great vessels, fat of the back and skin."""
    side = np.abs(patch.left)
    waves = _waves(points - anatomy.curve.centres[_BIFURCATION].astype(np.float32), anatomy.situs)
    bowel = np.maximum(patch.posterior + 34.0, -90.0 - patch.posterior) + 12.0 * waves
    patch.paint(bowel * 0.2, Tissue.BOWEL, 0.8)
    grown = np.clip((patch.ladder - 2.0) / 5.0, 0.3, 1.0) * anatomy.muscle_size
    psoas = ellipse(side - 27.0 - 12.0 * grown, patch.posterior - 4.0, 14.0 * grown, 19.0 * grown)
    patch.paint(psoas, Tissue.MUSCLE)
    patch.paint(ellipse(side - 62.0, patch.posterior - 16.0, 17.0, 9.0), Tissue.MUSCLE)
    back_muscle = ellipse(side - 29.0, patch.posterior - WALL_MM - 26.0, 27.0, 25.0 * anatomy.muscle_size)
    marbling = np.clip((waves - 0.9 + 1.2 * anatomy.muscle_fat) * 2.0, 0.0, 1.0)
    patch.paint(back_muscle, Tissue.LIGAMENT)
    patch.paint(back_muscle + 0.8, Tissue.MUSCLE)
    patch.paint(back_muscle + 1.5, Tissue.FAT, marbling * 0.8)
    left = patch.left * anatomy.situs
    split = np.clip(1.5 * (patch.ladder - _BIFURCATION + 1.0), 0.0, 2.0)
    for sign, middle, radius, tissue in ((1.0, 10.0, 9.0, Tissue.VESSEL), (-1.0, -15.0, 9.5, Tissue.VEIN)):
        across = left - middle - sign * 8.0 * split
        away = ellipse(across, patch.posterior + 31.0, radius - 1.5 * split, radius - split)
        patch.paint(away - 1.0, Tissue.LIGAMENT)
        patch.paint(away, tissue)
    patch.paint(-2.0 - skin, Tissue.SKIN)
    patch.paint(-skin, Tissue.AIR)


def _skin_distance(points: NDArray[np.floating], anatomy: Anatomy) -> Floats:
    """Distance (N,) in mm outside the skin, negative within the body: flat on the table, round elsewhere."""
    middle = anatomy.curve.centres.mean(axis=0).tolist()
    across, back = points[:, 0] - middle[0], points[:, 1] - middle[1]
    behind = back - (WALL_MM + 54.0 + anatomy.back_fat_mm) + 0.0012 * across**2
    ahead = np.hypot(0.75 * across, back + 5.0) - 122.0
    return np.asarray(np.maximum(behind, ahead), np.float32)


def _waves(points: NDArray[np.floating], situs: float) -> Floats:
    """A smooth texture within -1..1 at points (N, 3) relative to the body; mirrored with it."""
    x, y, z = np.ascontiguousarray(points.T, dtype=np.float32) * np.array([[situs], [1.0], [1.0]], np.float32)
    first = np.sin(0.31 * x + 0.19 * y) * np.sin(0.27 * y - 0.11 * z)
    second = np.sin(0.53 * x - 0.41 * y + 1.0) * np.sin(0.23 * z + 0.35 * x)
    return np.asarray(0.5 * (first + second), np.float32)
