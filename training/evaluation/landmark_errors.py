"""Distance of located landmarks from annotated ones, in mm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernels.lumbar.dicom.geometry import MINUS_X
from kernels.lumbar.labels import KIND_OF_GROUP, group_of
from kernels.lumbar.manifest import LocaliserError

# The axis of the patient that the slices of a series run along.
SLICE_AXIS = {"sagittal_t1": 0, "sagittal_t2": 0, "axial_t2": 2}
# Median of the distance from the middle of a round gaussian, in standard deviations of one axis (Rayleigh).
MEDIAN_OF_SIGMA = float(np.sqrt(2 * np.log(2)))
# Upper limit of the jitter: with more, crops miss the landmark.
LARGEST_SIGMA_MM = 6.0
# Points that are farther off lie at another level, or on slices that no crop of this landmark should show.
LARGEST_OFFSET_MM = 15.0
# Of the errors across slices so many quantiles go into the manifest.
QUANTILES = 21
# So many measured errors of a view are kept.
MOST_OFFSETS = 400


def in_plane_mm(point: np.ndarray, other: np.ndarray, group: str) -> float:
    """Distance of two points within the slices in which a condition group is annotated."""
    return float(np.hypot(*np.delete(np.asarray(point) - np.asarray(other), SLICE_AXIS[KIND_OF_GROUP[group]])))


def across_slices_mm(point: np.ndarray, other: np.ndarray, group: str) -> float:
    """Distance of two points across these slices."""
    return float(abs((np.asarray(point) - np.asarray(other))[SLICE_AXIS[KIND_OF_GROUP[group]]]))


@dataclass(frozen=True)
class LandmarkError:
    """In-plane distance between located and annotated points of one view."""

    count: int
    median_mm: float
    p95_mm: float
    sigma_mm: float
    """Standard deviation (each axis), from the median, which wrong levels hardly change."""
    offsets_mm: Sequence[Sequence[float]] = ()
    """At most MOST_OFFSETS of the errors themselves, (3,) patient mm from the annotated to the located point, those of
    right sides mirrored; without those that exceed LARGEST_OFFSET_MM."""

    @property
    def drawn(self) -> tuple[float, list[list[float]]]:
        """What training draws from, as JSON has it."""
        return self.sigma_mm, [list(offset) for offset in self.offsets_mm]

    def for_manifest(self, view: str) -> LocaliserError | None:
        """The distribution of the errors of a view; None where most of its landmarks were not found."""
        if not len(self.offsets_mm) or not np.isfinite(self.median_mm):
            return None
        across_mm = np.asarray(self.offsets_mm)[:, SLICE_AXIS[view]]
        quantiles = np.quantile(across_mm, np.linspace(0, 1, QUANTILES)).round(2).tolist()
        return LocaliserError(
            count=self.count, median_mm=self.median_mm, sigma_mm=self.sigma_mm, across_mm=tuple(quantiles)
        )


def landmark_errors(
    located: Mapping[str, Mapping[str, np.ndarray]], truth: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, LandmarkError]:
    """View → error, from study → row → point in mm.  A landmark that was not located has an infinite error."""
    distances: dict[str, list[float]] = {view: [] for view in KIND_OF_GROUP.values()}
    offsets: dict[str, list[list[float]]] = {view: [] for view in KIND_OF_GROUP.values()}
    for study, points in truth.items():
        for row, point in points.items():
            view = KIND_OF_GROUP[group_of(row)]
            found = located.get(study, {}).get(row)
            if found is None:
                distances[view].append(np.inf)
            else:
                distances[view].append(in_plane_mm(np.asarray(found), np.asarray(point), group_of(row)))
                offset = (np.asarray(found) - np.asarray(point)) * (MINUS_X if row.startswith("right_") else 1.0)
                if np.linalg.norm(offset) <= LARGEST_OFFSET_MM:
                    offsets[view].append(np.round(offset, 1).tolist())
    errors = {}
    for view, values in distances.items():
        if values:
            median_mm = float(np.median(values))
            sigma_mm = min(median_mm / MEDIAN_OF_SIGMA, LARGEST_SIGMA_MM)
            p95_mm = float(np.quantile(values, 0.95, method="lower"))
            kept = np.linspace(0, len(offsets[view]) - 1, min(len(offsets[view]), MOST_OFFSETS)).astype(int)
            its_offsets = [offsets[view][number] for number in kept]
            errors[view] = LandmarkError(len(values), median_mm, p95_mm, sigma_mm, its_offsets)
    return errors


def offsets_by_group(errors: Mapping[str, LandmarkError]) -> dict[str, np.ndarray]:
    """Condition group → (N, 3) measured errors in mm, of the views in which any were measured."""
    pairs = [(group, errors[view].offsets_mm) for group, view in KIND_OF_GROUP.items() if view in errors]
    return {group: np.reshape(offsets, (-1, 3)).astype(float) for group, offsets in pairs if len(offsets)}
