"""Slices as planes in patient millimetres (DICOM LPS: +x patient left, +y posterior, +z head).

DICOM's formula (PS3.3 C.7.6.2.1.1): ImageOrientationPatient[0:3] and PixelSpacing[1] belong to the column index,
ImageOrientationPatient[3:6] and PixelSpacing[0] to the row index; an index is the centre of a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# Directions of increasing column, row and slice of canonical slices, per body plane.  The normal, column × row, is
# opposite to the slice direction: to patient right (sagittal) and to the head (axial).
CANONICAL_AXES = {
    "sagittal": (np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0]), np.array([1.0, 0.0, 0.0])),
    "axial": (np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0])),
}


def body_plane(kind: str) -> str:
    """'sagittal' or 'axial' of a series kind such as 'sagittal_t1'."""
    return kind.split("_")[0]


@dataclass(frozen=True, eq=False)
class Plane:
    """The pixel grid of one slice, or of a crop of one, in patient mm."""

    origin_mm: np.ndarray
    """(3,) centre of pixel (0, 0)."""
    column_mm: np.ndarray
    """(3,) step of one column to the right."""
    row_mm: np.ndarray
    """(3,) step of one row down."""

    @cached_property
    def normal(self) -> np.ndarray:
        """(3,) unit vector, column × row."""
        c, r = self.column_mm, self.row_mm  # written out: np.cross costs thirty times as much on single vectors
        normal = np.array([c[1] * r[2] - c[2] * r[1], c[2] * r[0] - c[0] * r[2], c[0] * r[1] - c[1] * r[0]])
        return normal / np.sqrt(normal @ normal)

    @cached_property
    def inverse(self) -> np.ndarray:
        """(3, 3) matrix from an offset in mm to (column, row, signed distance in mm)."""
        return np.linalg.inv(np.stack([self.column_mm, self.row_mm, self.normal], axis=1))

    @cached_property
    def spacing_mm(self) -> tuple[float, float]:
        """Distance between rows, and between columns."""
        return math.hypot(*self.row_mm), math.hypot(*self.column_mm)

    def to_patient(self, row: float | np.ndarray, column: float | np.ndarray) -> np.ndarray:
        """(..., 3) mm of fractional pixel positions."""
        return self.origin_mm + np.multiply.outer(column, self.column_mm) + np.multiply.outer(row, self.row_mm)

    def to_pixel(self, points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fractional row and column of the projection of (..., 3) points, and their signed distance in mm."""
        column, row, distance = np.moveaxis((np.asarray(points_mm) - self.origin_mm) @ self.inverse.T, -1, 0)
        return row, column, distance

    def grid(self, row: float, column: float, row_step: float = 1.0, column_step: float = 1.0) -> Plane:
        """A grid that starts at a fractional pixel of this one, with steps in its pixels."""
        origin = self.origin_mm + column * self.column_mm + row * self.row_mm
        return Plane(origin, self.column_mm * column_step, self.row_mm * row_step)

    def transposed(self) -> Plane:
        """The plane of the transposed image."""
        return Plane(self.origin_mm, self.row_mm, self.column_mm)


def canonical(plane: Plane, pixels: np.ndarray, kind: str) -> tuple[Plane, np.ndarray]:
    """Plane and (H, W) view of a slice, transposed and flipped to the canonical orientation of its kind.

    Sagittal: rows head → feet, columns anterior → posterior.  Axial: rows anterior → posterior, columns right → left.
    """
    columns_to, rows_to, _ = CANONICAL_AXES[body_plane(kind)]
    between_rows, between_columns = plane.spacing_mm
    row, column = plane.row_mm / between_rows, plane.column_mm / between_columns
    straight = abs(column @ columns_to) + abs(row @ rows_to)
    crossed = abs(column @ rows_to) + abs(row @ columns_to)
    if crossed > straight:
        plane, pixels = plane.transposed(), pixels.T
    if plane.column_mm @ columns_to < 0:
        plane, pixels = plane.grid(0, pixels.shape[1] - 1, column_step=-1), pixels[:, ::-1]
    if plane.row_mm @ rows_to < 0:
        plane, pixels = plane.grid(pixels.shape[0] - 1, 0, row_step=-1), pixels[::-1]
    return plane, pixels


def tilt_deg(plane: Plane, kind: str) -> float:
    """Angle between a plane and the body plane of its kind."""
    cosine = abs(float(plane.normal @ CANONICAL_AXES[body_plane(kind)][2]))
    return math.degrees(math.acos(min(1.0, cosine)))


def group_parallel(
    planes: Sequence[Plane], shapes: Sequence[tuple[int, ...]], angle_deg: float = 2.0, spacing_ratio: float = 0.01
) -> list[list[int]]:
    """Indices of the slices of each stack: same orientation, shape and pixel spacing, within tolerances of the first.

    Gaps do not split a stack.
    """
    spacings = np.array([plane.spacing_mm for plane in planes]).reshape(-1, 2)
    rows = np.array([plane.row_mm for plane in planes]).reshape(-1, 3) / spacings[:, :1]
    columns = np.array([plane.column_mm for plane in planes]).reshape(-1, 3) / spacings[:, 1:]
    least_cosine = math.cos(math.radians(angle_deg))
    groups: list[list[int]] = []
    left = list(range(len(planes)))
    while left:
        first = left[0]
        alike = (rows @ rows[first] >= least_cosine) & (columns @ columns[first] >= least_cosine)
        alike &= np.abs(spacings / spacings[first] - 1).max(axis=1) <= spacing_ratio
        group = [index for index in left if alike[index] and shapes[index] == shapes[first]]
        groups.append(group)
        left = [index for index in left if index not in group]
    return groups


def between(planes: Sequence[Plane], index: float) -> Plane:
    """The plane at a fractional index, interpolated between its neighbours; the ends are not extrapolated."""
    index = min(max(float(index), 0.0), len(planes) - 1.0)
    low = int(index)
    share = index - low
    if share == 0:
        return planes[low]
    a, b = planes[low], planes[low + 1]
    return Plane(
        a.origin_mm + share * (b.origin_mm - a.origin_mm),
        a.column_mm + share * (b.column_mm - a.column_mm),
        a.row_mm + share * (b.row_mm - a.row_mm),
    )


def lift_points(planes: Sequence[Plane], points: np.ndarray) -> np.ndarray:
    """(K, 3) mm of (K, 3) points in (fractional slice, row, column); points that are not finite stay NaN."""
    points = np.asarray(points, np.float64)
    lifted = np.full((len(points), 3), np.nan)
    for index, (where, row, column) in enumerate(points):
        if np.isfinite(where):
            lifted[index] = between(planes, where).to_patient(row, column)
    return lifted


def project_points(planes: Sequence[Plane], points_mm: np.ndarray) -> np.ndarray:
    """(K, 3) fractional slice, row, column of (K, 3) points in mm.

    The slice is fractional between two planes and clamped beyond the outermost ones.  The inverse of `lift_points` for
    points between the planes of a stack.
    """
    points_mm = np.asarray(points_mm, np.float64).reshape(-1, 3)
    origins = np.stack([plane.origin_mm for plane in planes])
    normals = np.stack([plane.normal for plane in planes])
    distances = np.einsum("skd,sd->ks", points_mm[None] - origins[:, None], normals)  # (K, S)
    projected = np.full((len(points_mm), 3), np.nan)
    for index, (point, distance) in enumerate(zip(points_mm, distances, strict=True)):
        if np.isfinite(point).all():
            where = _fractional_index(distance)
            row, column, _ = between(planes, where).to_pixel(point)
            projected[index] = where, row, column
    return projected


def slice_distances(planes: Sequence[Plane], points_mm: np.ndarray) -> np.ndarray:
    """(slice, K) signed distances in mm of (K, 3) points from each plane, positive towards higher slices."""
    origins = np.stack([plane.origin_mm for plane in planes])
    normals = np.stack([plane.normal for plane in planes])
    # Canonical stacks run against their normals, reversed views along them.
    forward = np.sign((origins[-1] - origins[0]) @ normals.mean(0)) or -1.0
    return forward * np.einsum("skd,sd->sk", points_mm[None] - origins[:, None], normals)


def _fractional_index(distances: np.ndarray) -> float:
    """Fractional slice of a point, from its signed distance (S,) to each plane."""
    count = len(distances)
    # Of equally near planes (windows clamped at an edge repeat it) the one nearest to the middle.
    nearest = min(range(count), key=lambda k: (round(abs(float(distances[k])), 9), abs(k - (count - 1) / 2)))
    here = distances[nearest]
    for other in (nearest - 1, nearest + 1):
        if 0 <= other < count and here * distances[other] < 0:
            return nearest + (other - nearest) * float(here / (here - distances[other]))
    return float(nearest)
