"""Annotations of a study: missing labels, and the pixel and slice of each annotated landmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.lumbar.labels import CONDITIONS, LEVELS, ROW_INDEX, ROWS, SIDES

from .aggregates import UNCLICKED_CANAL, UNCLICKED_OTHER, UNGRADED_STUDIES
from .protocol import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2, SeriesPlan

CLICK_SPREAD_MM = 0.8
"""Standard deviation of a click about the true place, along each image axis."""
_SEEN_MM = 1.6


@dataclass(frozen=True)
class Click:
    """A point of train_label_coordinates.csv: row of ROWS, index of the series, instance number, pixels."""

    row: int
    series: int
    instance: int
    x: float
    y: float


def annotate(
    rng: np.random.Generator, plans: list[SeriesPlan], landmarks: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], list[Click]]:
    """(25,) bool of graded rows, and the clicks on these, for landmarks (25, 3) in patient mm."""
    graded = np.ones(len(ROWS), bool)
    for condition, share in UNGRADED_STUDIES.items():
        if rng.random() < share:
            graded[[row.startswith(condition) for row in ROWS]] = False
    clicks = []
    for level in range(len(LEVELS)):
        pair = _axial_pair(rng, plans, landmarks, level)
        for number, condition in enumerate(CONDITIONS):
            row = number * len(LEVELS) + level
            if "subarticular" in condition:
                series = pair[0 if condition.startswith("left") else 1]
                graded[row] &= series is not None
            else:
                wanted = SAGITTAL_T2 if condition.startswith("spinal") else SAGITTAL_T1
                series = _sagittal_series(plans, wanted)
            if not graded[row] or series is None or rng.random() < _unclicked(condition, level):
                continue
            clicks.append(_click(rng, plans, series, row, landmarks[row]))
    return graded, clicks


def _unclicked(condition: str, level: int) -> float:
    return UNCLICKED_CANAL[level] if condition.startswith("spinal") else UNCLICKED_OTHER


def _sagittal_series(plans: list[SeriesPlan], wanted: str) -> int | None:
    """The first series of the wanted kind; the canal is clicked on T1 where there is no T2."""
    for description in (wanted, SAGITTAL_T1) if wanted == SAGITTAL_T2 else (wanted,):
        for index, plan in enumerate(plans):
            if plan.description == description:
                return index
    return None


def _axial_pair(
    rng: np.random.Generator, plans: list[SeriesPlan], landmarks: NDArray[np.float64], level: int
) -> tuple[int | None, int | None]:
    """Axial series of the clicks on the left and the right recess of a level, None where none shows them."""
    points = [landmarks[ROW_INDEX[f"{side}_subarticular_stenosis_{LEVELS[level]}"]] for side in SIDES]
    seen = []
    for index, plan in enumerate(plans):
        if plan.description == AXIAL_T2 and all(_shows(plan, point) for point in points):
            seen.append(index)
    if not seen:
        return None, None
    # Where two series show a level, annotators mostly used one for each side.
    left = int(rng.choice(seen))
    others = [index for index in seen if index != left]
    return left, int(rng.choice(others)) if others and rng.random() < 0.85 else left


def _shows(plan: SeriesPlan, point: NDArray[np.float64]) -> bool:
    distances = plan.distances(point)
    nearest = int(distances.argmin())
    return bool(distances[nearest] <= 0.5 * plan.distance_mm + _SEEN_MM) and plan.holds(nearest, point)


def _click(
    rng: np.random.Generator, plans: list[SeriesPlan], series: int, row: int, point: NDArray[np.float64]
) -> Click:
    """A click on the slice nearest to the point, or at times on one beside it."""
    plan = plans[series]
    distances = plan.distances(point) + np.abs(rng.normal(0.0, 0.4 * plan.distance_mm, len(plan.slices)))
    place = plan.slices[int(distances.argmin())]
    column, row_px, _ = place.project(point, plan.spacing_mm)
    jitter = rng.normal(0.0, CLICK_SPREAD_MM / plan.spacing_mm, 2)
    x = float(np.clip(column + jitter[0], 0, plan.columns - 1))
    y = float(np.clip(row_px + jitter[1], 0, plan.rows - 1))
    return Click(row, series, place.instance, x, y)
