"""Distance of located landmarks from annotated ones, in mm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kernels.lumbar.labels import group_of

# The series in which each condition group is annotated, and the axis of the patient that its slices run along.
VIEW_OF_GROUP = {"spinal": "sagittal_t2", "foraminal": "sagittal_t1", "subarticular": "axial_t2"}
SLICE_AXIS = {"sagittal_t1": 0, "sagittal_t2": 0, "axial_t2": 2}
# Median of the distance from the middle of a round gaussian, in standard deviations of one axis (Rayleigh).
MEDIAN_OF_SIGMA = float(np.sqrt(2 * np.log(2)))
# Upper limit of the jitter: with more, crops miss the landmark.
LARGEST_SIGMA_MM = 6.0


def in_plane_mm(point: np.ndarray, other: np.ndarray, group: str) -> float:
    """Distance of two points within the slices in which a condition group is annotated."""
    return float(np.hypot(*np.delete(np.asarray(point) - np.asarray(other), SLICE_AXIS[VIEW_OF_GROUP[group]])))


def across_slices_mm(point: np.ndarray, other: np.ndarray, group: str) -> float:
    """Distance of two points across these slices."""
    return float(abs((np.asarray(point) - np.asarray(other))[SLICE_AXIS[VIEW_OF_GROUP[group]]]))


@dataclass(frozen=True)
class LandmarkError:
    """In-plane distance between located and annotated points of one view."""

    count: int
    median_mm: float
    p95_mm: float
    sigma_mm: float
    """Standard deviation (each axis), from the median, which wrong levels hardly change."""


def landmark_errors(
    located: Mapping[str, Mapping[str, np.ndarray]], truth: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, LandmarkError]:
    """View → error, from study → row → point in mm.  A landmark that was not located has an infinite error."""
    distances: dict[str, list[float]] = {view: [] for view in VIEW_OF_GROUP.values()}
    for study, points in truth.items():
        for row, point in points.items():
            view = VIEW_OF_GROUP[group_of(row)]
            found = located.get(study, {}).get(row)
            if found is None:
                distances[view].append(np.inf)
            else:
                distances[view].append(in_plane_mm(np.asarray(found), np.asarray(point), group_of(row)))
    errors = {}
    for view, values in distances.items():
        if values:
            median_mm = float(np.median(values))
            sigma_mm = min(median_mm / MEDIAN_OF_SIGMA, LARGEST_SIGMA_MM)
            p95_mm = float(np.quantile(values, 0.95, method="lower"))
            errors[view] = LandmarkError(len(values), median_mm, p95_mm, sigma_mm)
    return errors
