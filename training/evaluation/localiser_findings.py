"""Quality of located landmarks: distance from the truth, right level, right slice.

A finding is one row of a table: one true landmark of one study, and the prediction of one localiser.  Landmarks that no
slice of their view shows are excluded, as annotators do not mark them either.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kernels.lumbar.answers.spine_shape import stack_centres
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.labels import KIND_OF_GROUP, LEVELS, ROWS, group_of

# Slices of the competition are up to 6.6 mm apart: points farther from all of them lie outside of the stack.
SHOWN_MM = 6.0
# Crops contain the neighbouring slices.
RIGHT_SLICES = 1
WITHIN_MM = (5.0, 10.0)

Points = Mapping[str, np.ndarray]


def level_of(row: str) -> str:
    """The level of one of ROWS."""
    return next(level for level in LEVELS if row.endswith(level))


def view_of(row: str) -> str:
    """The series kind in which a landmark is annotated."""
    return KIND_OF_GROUP[group_of(row)]


@dataclass(frozen=True)
class Slice:
    """A slice of a stack; the distance of a point from its plane, and whether its projection lies in the image."""

    stack: Stack
    index: int
    away_mm: float
    inside: bool

    @property
    def normal(self) -> np.ndarray:
        """(3,) unit vector across the slice."""
        return self.stack.planes[self.index].normal


def nearest_slice(stacks: Collection[Stack], point: np.ndarray) -> Slice | None:
    """The slice nearest to a point in patient mm, of those whose image contains the point's projection, or of all if
    none does; None without any slice."""
    candidates = []
    for stack in stacks:
        row, column, away = stack.to_pixels(np.asarray(point, np.float64)).T
        height, width = stack.pixels.shape[1:]
        inside = (row >= -0.5) & (row <= height - 0.5) & (column >= -0.5) & (column <= width - 0.5)
        index = int(np.lexsort((np.abs(away), ~inside))[0])
        candidates.append(Slice(stack, index, abs(float(away[index])), bool(inside[index])))
    return min(candidates, key=lambda one: (not one.inside, one.away_mm), default=None)


def shown(study: Study, truth: Points) -> dict[str, Slice]:
    """Row → the nearest slice of its view, for the true landmarks that a slice shows."""
    nearest = {row: nearest_slice(study.of_kind(view_of(row)), point) for row, point in truth.items()}
    return {row: one for row, one in nearest.items() if one is not None and one.inside and one.away_mm <= SHOWN_MM}


def findings_of(
    study: str,
    truth: Points,
    slices: Mapping[str, Slice],
    found: Points,
    rows: Collection[str] = ROWS,
    guessed: Collection[str] = (),
    slices_only: bool = False,
) -> list[dict[str, Any]]:
    """Findings of one localiser in one study, for the rows in `slices` (see `shown`) among `rows`.

    A missing point has an infinite error, the wrong level and the wrong slice.  An imputed (`guessed`) one is measured,
    but does not count as found.  `slices_only`: the localiser predicts no place within the slice.
    """
    findings = []
    for row in rows:
        if row not in slices:
            continue
        finding: dict[str, Any] = {"study": study, "row": row, "view": view_of(row), "level": level_of(row)}
        measured: dict[str, Any] = {"error_mm": np.inf, "right_level": False, "right_slice": False}
        if row in found:
            measured = _measure(row, np.asarray(found[row]), truth, slices[row])
        if slices_only:
            measured["error_mm"] = np.nan
        findings.append(finding | {"found": row in found and row not in guessed} | measured)
    return findings


def _measure(row: str, point: np.ndarray, truth: Points, right: Slice) -> dict[str, Any]:
    """In-plane error in mm; whether its level is the nearest one (in plane on sagittal slices, along the stack on
    axial ones); and whether the point is at most RIGHT_SLICES off the right slice."""
    places = _column(truth, row.removesuffix(level_of(row)))
    across = {name: float((point - other) @ right.normal) for name, other in places.items()}
    squares = {name: float(np.sum((point - places[name]) ** 2)) - across[name] ** 2 for name in places}
    in_plane = {name: math.sqrt(max(square, 0)) for name, square in squares.items()}
    away = {name: abs(one) for name, one in across.items()} if view_of(row).startswith("axial") else in_plane
    nearest = min(places, key=away.__getitem__)
    index = int(np.abs(right.stack.to_pixels(point)[:, 2]).argmin())
    return {
        "error_mm": in_plane[row],
        "right_level": nearest == row,
        "right_slice": abs(index - right.index) <= RIGHT_SLICES,
    }


def _column(truth: Points, condition: str) -> dict[str, np.ndarray]:
    """The true landmarks of a condition and side, extrapolated by one level at each end: a point a level above L1/L2
    must not count as L1/L2."""
    rows = [f"{condition}{level}" for level in LEVELS if f"{condition}{level}" in truth]
    column = {row: np.asarray(truth[row]) for row in rows}
    if len(rows) > 1:
        column["above"] = 2 * column[rows[0]] - column[rows[1]]
        column["below"] = 2 * column[rows[-1]] - column[rows[-2]]
    return column


def summary(findings: pd.DataFrame) -> dict[str, float]:
    """Count, median and 95th percentile of the in-plane error in mm, and the shares that are found and right."""
    errors = findings["error_mm"].to_numpy(float)
    placed = bool(len(errors)) and not np.isnan(errors).any()
    return {
        "count": len(findings),
        "median_mm": float(np.median(errors)) if placed else np.nan,
        "p95_mm": float(np.quantile(errors, 0.95, method="higher")) if placed else np.nan,
        **{f"within_{limit:.0f}_mm": float((errors <= limit).mean()) if placed else np.nan for limit in WITHIN_MM},
        **{name: _share(findings[name]) for name in ("right_level", "right_slice", "found")},
    }


def _share(flags: pd.Series) -> float:
    return float(flags.astype(bool).mean()) if len(flags) else np.nan


def average_offsets(studies: Collection[Points]) -> dict[str, np.ndarray]:
    """Row → (3,) mm from the centre of the longest stack of its view to the landmark, the mean over training studies.

    `studies`: landmarks and stack centres (kernels.lumbar.answers.spine_shape.STACK_CENTRES) of each.
    """
    offsets: dict[str, list[np.ndarray]] = {}
    for points in studies:
        for row in ROWS:
            if row in points and (centre := f"centre_{view_of(row)}") in points:
                offsets.setdefault(row, []).append(np.asarray(points[row]) - points[centre])
    return {row: np.mean(several, axis=0) for row, several in offsets.items()}


def average_positions(study: Study, offsets: Points) -> dict[str, np.ndarray]:
    """Landmarks of a study at their average offsets: the baseline of every localiser."""
    centres = stack_centres(study)
    names = {row: f"centre_{view_of(row)}" for row in offsets}
    return {row: centres[name] + offsets[row] for row, name in names.items() if name in centres}
