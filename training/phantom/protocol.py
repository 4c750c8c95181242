"""Acquisition protocol of a study: its series, the plane of each slice, contrast, noise and header fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .aggregates import LEFT_HAS_HIGHER_INSTANCE, SAGITTAL_SERIES, SAGITTAL_SIZES, SAGITTAL_SLICES
from .curve import DISCS
from .sizes import Anatomy
from .tissue import Contrast

Floats = NDArray[np.float64]
Choice = TypeVar("Choice")

SAGITTAL_T1, SAGITTAL_T2, AXIAL_T2 = "Sagittal T1", "Sagittal T2/STIR", "Axial T2"


@dataclass(frozen=True)
class SlicePlan:
    """One image: patient mm of its first pixel's centre, directions of growing column and row, its number."""

    position: Floats
    along_row: Floats
    along_column: Floats
    instance: int

    @property
    def normal(self) -> Floats:
        """Unit vector across the slice."""
        return np.cross(self.along_row, self.along_column)

    def project(self, point: Floats, spacing_mm: float) -> tuple[float, float, float]:
        """Column, row (pixels) and distance from the plane (mm) of a patient point."""
        away = point - self.position
        column, row = away @ self.along_row / spacing_mm, away @ self.along_column / spacing_mm
        return float(column), float(row), float(away @ self.normal)


@dataclass(frozen=True)
class SeriesPlan:
    """Geometry, contrast, noise and header fields of one series.

    `padding` is the share of the width that is black at either side.
    """

    description: str
    contrast: Contrast
    rows: int
    columns: int
    spacing_mm: float
    thickness_mm: float
    distance_mm: float
    slices: tuple[SlicePlan, ...]
    acquired_mm: float
    """Pixel of the measurement, which the scanner interpolates to the pixel of the image."""
    noise: float
    texture: float
    """Standard deviation of the structure within a tissue, as a share of its signal."""
    white: float
    """Stored value of a signal of 1."""
    padding: float
    states_thickness: bool
    states_distance: bool
    states_rescale: bool
    title: str

    def holds(self, index: int, point: Floats) -> bool:
        """Whether a point lies within the image field of a slice."""
        column, row, _ = self.slices[index].project(point, self.spacing_mm)
        return 0 <= column <= self.columns - 1 and 0 <= row <= self.rows - 1

    def distances(self, point: Floats) -> Floats:
        """Distance (slice,) of a point from each slice, mm."""
        return np.array([abs(s.project(point, self.spacing_mm)[2]) for s in self.slices])


def choose(rng: np.random.Generator, counts: Mapping[Choice, int]) -> Choice:
    """A key, drawn in proportion to its count."""
    keys = list(counts)
    weights = np.array([counts[key] for key in keys], dtype=float)
    return keys[int(rng.choice(len(keys), p=weights / weights.sum()))]


def number_instances(rng: np.random.Generator, count: int) -> list[int]:
    """Instance numbers in ascending order: nearly always 1..count, rarely shifted, with gaps, or huge."""
    drawn = rng.random()
    start = int(rng.integers(2, 40)) if drawn < 0.02 else 5000 if drawn < 0.0206 else 1
    steps = rng.integers(1, 4, count) if 0.03 < drawn < 0.04 else np.ones(count, dtype=int)
    return [int(number) for number in start + np.cumsum(steps) - steps[0]]


def sample_habits(rng: np.random.Generator, description: str) -> dict[str, object]:
    """The fields of a SeriesPlan that concern contrast, noise and header rather than geometry."""
    contrast: Contrast = "t2"
    if description == SAGITTAL_T1:
        contrast = "t1"
    elif description == SAGITTAL_T2 and rng.random() < 0.12:
        contrast = "stir"
    return {
        "description": description,
        "contrast": contrast,
        "noise": float(rng.uniform(0.004, 0.03)),
        "texture": float(rng.uniform(0.03, 0.12)),
        "white": float(np.exp(rng.uniform(np.log(250.0), np.log(1400.0)))),
        "padding": float(rng.uniform(0.04, 0.12)) if rng.random() < 0.15 else 0.0,
        "states_thickness": bool(rng.random() > 0.04),
        "states_distance": bool(rng.random() > 0.06),
        "states_rescale": bool(rng.random() < 0.35),
        "title": "" if rng.random() < 0.5 else contrast.upper(),
    }


@dataclass(frozen=True)
class _SagittalField:
    columns: int
    rows: int
    height_mm: float
    slices: int
    width_mm: float
    centre: Floats


# Shares of fields that end within or below the upper sacrum, of wide ones, and of those cut shortly above L1/L2.
_ENDS_AT_SACRUM, _WIDE, _CUT_ABOVE = 0.4, 0.12, 0.1
# Share of fields that are narrower than high, as phase encoding from front to back leaves them.
_NARROW = 0.3
# L1/L2 and L5/S1 are never nearer to the border than this.
_MARGIN_MM = (18.0, 12.0)
# Above the highest disc there is nothing to show.
_ABOVE_MM = 40.0


def _sample_field(rng: np.random.Generator, anatomy: Anatomy, scale: float) -> _SagittalField:
    columns, rows = choose(rng, SAGITTAL_SIZES)
    middle = anatomy.curve.centres[DISCS.index("l3_l4")]
    across = anatomy.curve.centres[DISCS.index("l1_l2") : DISCS.index("l5_s1") + 1, 0].mean()
    offset = rng.normal([0.0, 13.0], [2.5, 11.0])
    height_mm, centre_z = _sample_extent(rng, anatomy)
    if rng.random() < _NARROW:
        columns = round(columns * rng.uniform(0.68, 0.92))
    return _SagittalField(
        columns=max(64, round(columns * scale)),
        rows=max(64, round(rows * scale)),
        height_mm=height_mm,
        slices=choose(rng, SAGITTAL_SLICES),
        width_mm=float(rng.normal(73.0, 5.0)),
        centre=np.array([across + offset[0], middle[1] + offset[1], centre_z]),
    )


def _sample_extent(rng: np.random.Generator, anatomy: Anatomy) -> tuple[float, float]:
    """Height (mm) of a field and z of its centre: all five levels are within it."""
    z = {disc: float(centre[2]) for disc, centre in zip(DISCS, anatomy.curve.centres, strict=True)}
    highest, lowest = z["l1_l2"] + _MARGIN_MM[0], z["l5_s1"] - _MARGIN_MM[1]
    height_mm = float(np.clip(rng.normal(298.0, 22.0), 245.0, 380.0))
    kind = rng.random()
    if kind < _ENDS_AT_SACRUM:
        bottom = min(float(rng.uniform(z["s2_s3"] - 25.0, z["s1_s2"] + 5.0)), lowest)
        height_mm = min(height_mm, z[DISCS[0]] + _ABOVE_MM - bottom)
        return height_mm, bottom + height_mm / 2
    centre = z["l3_l4"] + float(rng.normal(7.0, 14.0))
    if kind < _ENDS_AT_SACRUM + _WIDE:
        height_mm = float(rng.uniform(340.0, 420.0))
    elif kind < _ENDS_AT_SACRUM + _WIDE + _CUT_ABOVE:
        height_mm = max(float(rng.uniform(200.0, 270.0)), highest - lowest)
        centre = highest + float(rng.uniform(0.0, 35.0)) - height_mm / 2
    return height_mm, float(np.clip(centre, highest - height_mm / 2, lowest + height_mm / 2))


def _sagittal_series(rng: np.random.Generator, description: str, field: _SagittalField) -> SeriesPlan:
    spacing = round(field.height_mm / field.rows, 6)
    distance = round(float(np.clip(field.width_mm / field.slices, 3.0, 6.6)), 2)
    tilt = rng.normal(0.0, 0.02, 2) * (rng.random() < 0.5)
    along_row = np.array([-tilt[0], 1.0, 0.0]) / np.hypot(tilt[0], 1.0)
    along_column = np.array([tilt[1], 0.0, -1.0])
    along_column -= along_row * (along_column @ along_row)
    along_column /= np.linalg.norm(along_column)
    normal = np.cross(along_row, along_column)
    corner = field.centre - spacing * (along_row * (field.columns - 1) + along_column * (field.rows - 1)) / 2
    # The normal points to the patient's right: place 0 is the leftmost slice.
    places = (np.arange(field.slices) - (field.slices - 1) / 2) * distance
    numbers = number_instances(rng, field.slices)
    if rng.random() < LEFT_HAS_HIGHER_INSTANCE:
        numbers.reverse()
    slices = tuple(
        SlicePlan(corner + place * normal, along_row, along_column, number)
        for place, number in zip(places, numbers, strict=True)
    )
    return SeriesPlan(
        rows=field.rows,
        columns=field.columns,
        spacing_mm=spacing,
        thickness_mm=round(distance * float(rng.uniform(0.8, 1.0)), 1),
        distance_mm=distance,
        slices=slices,
        acquired_mm=float(rng.uniform(0.8, 1.0)),
        **sample_habits(rng, description),  # type: ignore[arg-type]
    )


def sample_sagittal(rng: np.random.Generator, anatomy: Anatomy, scale: float) -> list[SeriesPlan]:
    """The sagittal series of a study: T1 and T2 agree in matrix and field in under half of the studies."""
    t1_count, t2_count = choose(rng, SAGITTAL_SERIES)
    shared = _sample_field(rng, anatomy, scale)
    plans = []
    for description, count in ((SAGITTAL_T1, t1_count), (SAGITTAL_T2, t2_count)):
        for _ in range(count):
            field = shared
            if description == SAGITTAL_T2 and rng.random() < 0.57:
                field = _sample_field(rng, anatomy, scale)
                if rng.random() < 0.5:
                    field = replace(field, slices=shared.slices, width_mm=shared.width_mm)
            plans.append(_sagittal_series(rng, description, field))
    return plans
