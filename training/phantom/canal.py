"""The spinal canal, its subarticular recesses and the foramina: what the 25 grades are read from."""

from __future__ import annotations

import numpy as np

from .bones import by_side
from .curve import FIRST_LABELLED, Floats
from .sizes import WALL_MM, Anatomy, DiscLevel, sac_fronts
from .tissue import Patch, Tissue, ellipse

_RECESS_SIDE_MM = 8.9
_RECESS_OPEN_MM = 7.4
_ROOT_MM = 0.75


def paint_foramina(patch: Patch, level: DiscLevel) -> None:
    """Fat around the exiting root on both sides; narrowing squeezes the fat out and flattens the root."""
    side = np.abs(patch.left)
    width, height = by_side(patch, level.foramen_width), by_side(patch, level.foramen_height)
    upward = patch.height - 5.5
    outward = side - level.foramen_side
    forward = patch.posterior - (WALL_MM + 4.2) + 0.25 * outward
    tunnel = np.abs(outward - 1.0) - 6.5
    patch.paint(ellipse(np.hypot(forward, 6.2 * (outward / 8.0) ** 2), upward, 6.2, 11.5), Tissue.LIGAMENT)
    raised = upward - 0.3 * np.maximum(20.0 - height, 0.0)
    keyhole = np.float32(0.5) * width * (1.0 - 0.28 / (1.0 + np.exp(np.clip(raised + 2.0, -20.0, 20.0) / 2.0)))
    around = np.hypot(forward, keyhole * (outward / 8.5) ** 2)
    patch.paint(ellipse(around, raised, keyhole, 0.5 * height), Tissue.FAT)
    root_height = 5.0 - 0.3 * outward
    half_depth = np.clip(0.42 * width, 0.8, 2.6)
    patch.paint(
        np.maximum(ellipse(forward + 0.3, raised - root_height + 1.0, half_depth, 3.0), tunnel - 1.0),
        Tissue.ROOT,
    )


def paint_canal(patch: Patch, anatomy: Anatomy, disc: int) -> None:
    """Epidural fat, ligaments, dural sac with roots or cord, and the recesses beside it."""
    level = anatomy.levels[disc]
    side = np.abs(patch.left)
    at_disc = np.exp(-((patch.height / 6.5) ** 2))
    between = anatomy.along(patch.ladder, "sac_depth_between")
    depth = between + (level.sac_depth - between) * at_disc
    width = 1.2 * between + (level.sac_width - 1.2 * between) * at_disc
    front = sac_fronts(between, depth)
    middle = front + 0.5 * depth
    bony = ellipse(patch.left, patch.posterior - (WALL_MM + 9.2), 12.0, 9.6)
    patch.paint(np.maximum(bony, WALL_MM + 0.2 - patch.posterior), Tissue.FAT)
    _paint_ligaments(patch, anatomy, side, bony, front, front + depth)
    sac = ellipse(patch.left, patch.posterior - middle, 0.5 * width, 0.5 * depth)
    patch.paint(sac - 0.6, Tissue.LIGAMENT)
    inside = np.flatnonzero(sac < patch.edge)
    if len(inside):
        part = patch.part(inside)
        part.paint(sac[inside], Tissue.CSF)
        _paint_nerves(part, anatomy, disc, sac[inside], middle[inside], 0.5 * width[inside], 0.5 * depth[inside])
        patch.put(inside, part)
    if level.lumbar and disc >= FIRST_LABELLED:
        _paint_recesses(patch, level, side)


def _paint_ligaments(patch: Patch, anatomy: Anatomy, side: Floats, bony: Floats, front: Floats, back: Floats) -> None:
    """Dark tissue before the sac at the disc, and the yellow ligament behind it beside a wedge of fat."""
    near_disc = np.abs(patch.height) - 8.5
    ahead = np.maximum(np.maximum(patch.posterior - front, near_disc), side - 7.0)
    patch.paint(np.maximum(ahead, bony), Tissue.LIGAMENT)
    behind = patch.posterior - back
    fat_wedge = 4.5 * anatomy.epidural_fat - 0.5 * behind
    flavum = np.maximum(np.maximum(back - 0.45 * (back - front) - patch.posterior, fat_wedge - side), bony)
    patch.paint(np.maximum(flavum, np.abs(patch.height) - 12.0), Tissue.LIGAMENT)


def _paint_nerves(
    part: Patch,
    anatomy: Anatomy,
    disc: int,
    sac: Floats,
    middle: Floats,
    half_width: Floats,
    half_depth: Floats,
) -> None:
    """The cord above the conus and the roots of the cauda equina, which keep their size in a narrow sac."""
    within = np.maximum(sac + 0.5, 0.0)
    nearest = np.full(len(sac), 99.0, np.float32)
    for across, deep in anatomy.root_places[: anatomy.levels[disc].roots].tolist():
        away = (part.left - across * half_width) ** 2 + (part.posterior - middle - deep * half_depth) ** 2
        nearest = np.minimum(nearest, away)
    part.paint(np.sqrt(nearest) - _ROOT_MM + within, Tissue.ROOT)
    above_conus = part.height - anatomy.conus_height_mm if disc == FIRST_LABELLED else np.float32(30.0)
    if disc <= FIRST_LABELLED:
        taper = np.clip(above_conus * 0.3, 0.0, 4.2)
        cord = ellipse(
            part.left, part.posterior - middle - 0.5, np.maximum(taper * 1.15, 0.05), np.maximum(taper, 0.05)
        )
        part.paint(cord, Tissue.CORD)


def _paint_recesses(patch: Patch, level: DiscLevel, side: Floats) -> None:
    """The corners between disc and facet: fat around the traversing root, dark tissue when narrow."""
    at_disc = np.exp(-(((patch.height + 1.0) / 6.5) ** 2))
    depth = _RECESS_OPEN_MM + (by_side(patch, level.recess_depth) - _RECESS_OPEN_MM) * at_disc
    reach = np.maximum(patch.height - 9.0, -16.0 - patch.height)
    across, behind = side - _RECESS_SIDE_MM, patch.posterior - (WALL_MM + 0.4 + 0.5 * _RECESS_OPEN_MM)
    blocked = np.maximum(ellipse(across, behind, 3.9, 0.5 * _RECESS_OPEN_MM + 0.4), reach)
    patch.paint(blocked, Tissue.LIGAMENT)
    half = np.maximum(0.5 * depth, 0.1)
    openness = np.clip(depth / _RECESS_OPEN_MM, 0.0, 1.0)
    patch.paint(np.maximum(ellipse(across, behind, 3.5 * (0.6 + 0.4 * openness), half), reach), Tissue.FAT)
    patch.paint(np.maximum(ellipse(across, behind, 1.7, np.minimum(1.6, 0.7 * half)), reach), Tissue.ROOT)
