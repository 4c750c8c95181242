"""Axial T2 series: one block of slices, one stack for each disc, or both, over the levels a series covers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .aggregates import AXIAL_COVERAGE, AXIAL_DOWNWARD, AXIAL_SIZES
from .curve import FIRST_LABELLED
from .protocol import AXIAL_T2, SeriesPlan, SlicePlan, choose, number_instances, sample_habits
from .sizes import WALL_MM, Anatomy

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Plane:
    """A slice without its image matrix: the centre and the angle by which its front is higher."""

    centre: Floats
    front_higher_rad: float


def sample_axial(rng: np.random.Generator, anatomy: Anatomy, scale: float) -> list[SeriesPlan]:
    """The axial series of a study, with their coverage drawn from the measured combinations."""
    size = _sample_size(rng)
    plans = []
    for levels in choose(rng, AXIAL_COVERAGE).split("|"):
        if rng.random() < 0.3:
            size = _sample_size(rng)
        plans.append(_axial_series(rng, anatomy, [int(level) - 1 for level in levels], size, scale))
    return plans


def _sample_size(rng: np.random.Generator) -> tuple[int, float]:
    return choose(rng, AXIAL_SIZES), float(np.clip(rng.normal(182.0, 18.0), 140.0, 240.0))


def _axial_series(
    rng: np.random.Generator, anatomy: Anatomy, levels: list[int], size: tuple[int, float], scale: float
) -> SeriesPlan:
    matrix, field_mm = max(64, round(size[0] * scale)), size[1]
    spacing = round(field_mm / matrix, 6)
    fine = rng.random() < 0.006
    distance = 1.0 if fine else round(float(np.clip(rng.normal(4.5, 0.5), 3.3, 6.0)), 2)
    planes = _sample_planes(rng, anatomy, levels, distance, fine)
    shift = rng.normal([0.0, 4.0], [4.0, 6.0])
    turn = float(rng.normal(0.0, 0.012) * (rng.random() < 0.5))
    numbers = number_instances(rng, len(planes))
    if rng.random() > AXIAL_DOWNWARD:
        numbers.reverse()
    slices = []
    for plane, number in zip(planes, numbers, strict=True):
        angle = plane.front_higher_rad
        along_column = np.array([0.0, np.cos(angle), -np.sin(angle)])
        up = np.array([0.0, np.sin(angle), np.cos(angle)])
        along_row = np.cos(turn) * np.array([1.0, 0.0, 0.0]) + np.sin(turn) * up
        middle = plane.centre + shift[0] * along_row + shift[1] * along_column
        corner = middle - 0.5 * spacing * (matrix - 1) * (along_row + along_column)
        slices.append(SlicePlan(corner, along_row, along_column, number))
    return SeriesPlan(
        rows=matrix,
        columns=matrix,
        spacing_mm=spacing,
        thickness_mm=round(distance * float(rng.uniform(0.8, 1.0)), 1),
        distance_mm=distance,
        slices=tuple(slices),
        acquired_mm=float(rng.uniform(0.6, 0.8)),
        **sample_habits(rng, AXIAL_T2),  # type: ignore[arg-type]
    )


def _sample_planes(
    rng: np.random.Generator, anatomy: Anatomy, levels: list[int], distance: float, fine: bool
) -> list[_Plane]:
    """Planes from top to bottom in the form of stacks that a site uses."""
    form = "block" if fine else rng.choice(["block", "discs", "mixed"], p=[0.45, 0.40, 0.15])
    if len(levels) == 1 or form == "discs":
        return _disc_stacks(rng, anatomy, levels, distance)
    if form == "mixed" and levels[-1] == 4:
        upper, lower = levels[:-1], levels[-1:]
        return [*_block(rng, anatomy, upper, distance), *_disc_stacks(rng, anatomy, lower, distance)]
    return _block(rng, anatomy, levels, distance)


def _disc_inclination(anatomy: Anatomy, level: int) -> float:
    posterior = anatomy.curve.axes[FIRST_LABELLED + level, 1]
    return float(-np.arcsin(posterior[2]))


def _canal(anatomy: Anatomy, level: int) -> Floats:
    disc = FIRST_LABELLED + level
    return anatomy.curve.centres[disc] + WALL_MM * anatomy.curve.axes[disc, 1]


def _disc_stacks(rng: np.random.Generator, anatomy: Anatomy, levels: list[int], distance: float) -> list[_Plane]:
    """A few slices for each disc, tilted as the disc is (many sites not fully)."""
    followed = float(rng.uniform(0.75, 1.0))
    count = int(rng.integers(3, 7))
    planes: list[_Plane] = []
    for level in levels:
        angle = followed * _disc_inclination(anatomy, level) + float(rng.normal(0.0, 0.035))
        up = np.array([0.0, np.sin(angle), np.cos(angle)])
        centre = _canal(anatomy, level) + up * rng.normal(0.0, 1.0)
        places = ((count - 1) / 2 - np.arange(count)) * distance
        planes.extend(_Plane(centre + place * up, angle) for place in places)
    return planes


def _block(rng: np.random.Generator, anatomy: Anatomy, levels: list[int], distance: float) -> list[_Plane]:
    """One stack of parallel slices over all levels, hardly tilted."""
    mean = np.mean([_disc_inclination(anatomy, level) for level in levels])
    angle = float(np.clip(mean * rng.uniform(0.0, 0.7) + rng.normal(0.0, 0.02), -0.25, 0.2))
    up = np.array([0.0, np.sin(angle), np.cos(angle)])
    top, bottom = _canal(anatomy, levels[0]), _canal(anatomy, levels[-1])
    begin, end = top @ up + rng.uniform(6.0, 14.0), bottom @ up - rng.uniform(6.0, 14.0)
    count = int(np.ceil((begin - end) / distance)) + 1
    anchor = (top + bottom) / 2
    return [_Plane(anchor + (begin - place * distance - anchor @ up) * up, angle) for place in range(count)]
