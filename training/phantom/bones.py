"""Vertebrae and discs: bodies, pedicles, facets, laminae, spinous processes, painted in a disc's frame."""

from __future__ import annotations

import numpy as np

from .curve import AnyFloats, Floats
from .sizes import WALL_MM, Anatomy, DiscLevel, Sided, recess_front, sac_front
from .tissue import Patch, Tissue, ellipse

_VERTEBRA_MM = 37.0
_CORTEX_MM = 0.9


def by_side(patch: Patch, value: Sided) -> Floats:
    """The value of each point's own side."""
    return np.where(patch.left >= 0, np.float32(value.left), np.float32(value.right))


def _from_place(patch: Patch, fraction: float) -> Floats:
    """Height in mm above a place in the vertebra above, given as share of the way to the next disc."""
    above = patch.fraction - fraction
    return np.where(patch.fraction < fraction - 0.5, above + 1.0, above) * np.float32(_VERTEBRA_MM)


def _bone(patch: Patch, distance: AnyFloats) -> None:
    patch.paint(distance, Tissue.CORTEX)
    patch.paint(distance + _CORTEX_MM, Tissue.MARROW)


def paint_posterior_elements(patch: Patch, level: DiscLevel) -> None:
    """Laminae, spinous process, facets and pedicles."""
    side = np.abs(patch.left)
    back = patch.posterior - WALL_MM
    if level.sacral:
        _bone(patch, ellipse(side, back - 3.0, 46.0, 16.0))
        return
    lamina = np.abs(back - 26.0 + 0.5 * side) * 0.9 - 3.0
    lamina = np.maximum(np.maximum(lamina, side - 14.0), np.abs(_from_place(patch, 0.38)) - 9.0)
    _bone(patch, lamina)
    droop = _from_place(patch, 0.34) + 0.25 * (back - 26.0)
    spinous = np.maximum(np.maximum(side - 3.3, np.abs(back - 38.0) - 15.0), np.abs(droop) - 10.0)
    _bone(patch, spinous)
    between = np.maximum(np.maximum(side - 2.6, np.abs(back - 37.0) - 14.0), 10.5 - np.abs(droop))
    patch.paint(between, Tissue.LIGAMENT, 0.7)
    _paint_facets(patch, level, side, back)
    transverse = np.maximum(ellipse(back - 9.0, _from_place(patch, 0.64), 4.0, 4.5), np.abs(side - 24.0) - 13.0)
    _bone(patch, transverse)
    pedicle = ellipse(side - 14.6, _from_place(patch, 0.64), 4.6 + 0.1 * level.body_half_width, 7.4)
    _bone(patch, np.maximum(pedicle, np.abs(back - 5.0) - 10.0))


def _paint_facets(patch: Patch, level: DiscLevel, side: Floats, back: Floats) -> None:
    """The superior process of the vertebra below and, behind it, the inferior one of the vertebra above."""
    size = by_side(patch, level.facet_size)
    lower = np.sqrt(
        ((side - 16.0) / (5.6 * size)) ** 2 + ((back - 14.2) / (5.0 * size)) ** 2 + ((patch.height + 4.0) / 12.0) ** 2
    )
    upper = np.sqrt(
        ((side - 13.5) / (6.0 * size)) ** 2 + ((back - 21.5) / (5.6 * size)) ** 2 + ((patch.height - 5.0) / 14.0) ** 2
    )
    distance_lower, distance_upper = (lower - 1.0) * 5.0, (upper - 1.0) * 5.5
    _bone(patch, distance_upper)
    _bone(patch, distance_lower)
    joint = np.maximum(np.abs(distance_lower - distance_upper) - 0.5, np.maximum(distance_lower, distance_upper) - 1.0)
    patch.paint(joint, Tissue.JOINT_FLUID, 0.7)


def disc_bulge(patch: Patch, level: DiscLevel) -> Floats:
    """Protrusion of the disc behind the wall of the vertebral body, in mm, by each point's side."""
    side = np.abs(patch.left)
    central = sac_front(level.sac_depth_between, level.sac_depth) - WALL_MM - 0.9
    left, right = (recess_front(depth) - WALL_MM for depth in (level.recess_depth.left, level.recess_depth.right))
    recess = by_side(patch, Sided(left, right))
    foramen = np.maximum(0.5 * (9.5 - by_side(patch, level.foramen_width)), 0.0)
    bulge = np.maximum(central * np.exp(-((side / 6.0) ** 2)), recess * np.exp(-(((side - 9.0) / 3.5) ** 2)))
    return np.maximum(bulge, foramen * np.exp(-(((side - level.foramen_side) / 5.0) ** 2)))


def paint_body_and_disc(patch: Patch, anatomy: Anatomy, level: DiscLevel) -> None:
    """Vertebral bodies above and below, their endplates, and the disc with its bulge."""
    half_height = 0.5 * level.disc_height - level.wedge * np.clip(patch.posterior, -22.0, 18.0) * 0.5
    waist = 1.0 - 0.3 * np.abs(patch.fraction) * (1.0 - np.abs(patch.fraction))
    width = anatomy.along(patch.ladder, "body_half_width") * (2.0 if level.sacral else 1.0)
    outline = ellipse(patch.left, patch.posterior, width * waist, anatomy.along(patch.ladder, "body_front") * waist)
    wall = patch.posterior - WALL_MM * waist
    body = np.maximum(outline, wall)
    _bone(patch, body)
    off_disc = np.abs(patch.height) - half_height
    patch.paint(np.maximum(off_disc - _CORTEX_MM, body + 0.2), Tissue.CORTEX)
    bulge = disc_bulge(patch, level) if level.lumbar else np.float32(0.0)
    disc = np.maximum(np.maximum(outline - 1.0 - 0.6 * bulge * (patch.posterior > 0), wall - bulge), off_disc)
    patch.paint(disc, Tissue.ANNULUS)
    nucleus = ellipse(patch.left, patch.posterior - 0.5, 0.66 * level.body_half_width, 0.6 * level.body_front)
    nucleus = np.maximum(nucleus, np.abs(patch.height) - 0.72 * half_height)
    patch.paint(nucleus / 3.0, Tissue.NUCLEUS, 0.95 * (1.0 - level.degeneration))
