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

# What patient millimetres (LPS) of the mirror image are multiplied by.
MINUS_X = np.array([-1.0, 1.0, 1.0])
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


@dataclass(frozen=True, eq=False)
class Grids:
    """The planes of N slices as arrays: what costs little for a slice costs little for all."""

    origins_mm: np.ndarray
    """(N, 3), as Plane.origin_mm."""
    columns_mm: np.ndarray
    """(N, 3)"""
    rows_mm: np.ndarray
    """(N, 3)"""

    @classmethod
    def of(cls, planes: Sequence[Plane]) -> Grids:
        """The planes side by side."""
        origins = np.array([plane.origin_mm for plane in planes])
        columns, rows = ([getattr(plane, name) for plane in planes] for name in ("column_mm", "row_mm"))
        return cls(origins.reshape(-1, 3), np.array(columns).reshape(-1, 3), np.array(rows).reshape(-1, 3))

    def planes(self) -> list[Plane]:
        """One by one."""
        return list(map(Plane, self.origins_mm, self.columns_mm, self.rows_mm))

    def take(self, indices: Sequence[int]) -> Grids:
        """Those of some slices."""
        chosen = np.asarray(indices, int)
        return Grids(self.origins_mm[chosen], self.columns_mm[chosen], self.rows_mm[chosen])

    @cached_property
    def normals(self) -> np.ndarray:
        """(N, 3) unit vectors, column × row."""
        columns, rows, after, before = self.columns_mm, self.rows_mm, [1, 2, 0], [2, 0, 1]  # np.cross takes longer
        normals = columns[:, after] * rows[:, before] - columns[:, before] * rows[:, after]
        return normals / np.linalg.norm(normals, axis=1, keepdims=True)

    @cached_property
    def spacings_mm(self) -> np.ndarray:
        """(N, 2) distance between rows, and between columns."""
        return np.stack([np.linalg.norm(self.rows_mm, axis=1), np.linalg.norm(self.columns_mm, axis=1)], axis=1)

    def to_patient(self, row: float, column: float) -> np.ndarray:
        """(N, 3) mm of the same pixel of each slice."""
        return self.origins_mm + column * self.columns_mm + row * self.rows_mm

    @cached_property
    def projection(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3, 3) matrices and (N, 3) offsets: matrix @ point − offset = row, column, distance in mm of a slice."""
        columns = np.stack([self.columns_mm, self.rows_mm, self.normals], axis=2)  # (N, 3, 3)
        matrices = np.linalg.inv(columns)[:, [1, 0, 2]]
        return matrices, np.einsum("nij,nj->ni", matrices, self.origins_mm)


def canonical(grids: Grids, images: Sequence[np.ndarray], kind: str) -> tuple[Grids, list[np.ndarray]]:
    """Grids and (H, W) views of slices, transposed and flipped to the canonical orientation of their kind.

    Sagittal: rows head → feet, columns anterior → posterior.  Axial: rows anterior → posterior, columns right → left.
    """
    columns_to, rows_to, _ = CANONICAL_AXES[body_plane(kind)]
    between_rows, between_columns = grids.spacings_mm.T
    rows_along, rows_across = np.abs(grids.rows_mm @ np.stack([rows_to, columns_to], 1)).T / between_rows
    columns_across, columns_along = np.abs(grids.columns_mm @ np.stack([rows_to, columns_to], 1)).T / between_columns
    crossed = rows_across + columns_across > rows_along + columns_along  # (N,)
    images = [image.T if turn else image for image, turn in zip(images, crossed, strict=True)]
    swap = crossed[:, None]
    columns, rows = np.where(swap, grids.rows_mm, grids.columns_mm), np.where(swap, grids.columns_mm, grids.rows_mm)
    right_to_left, upside_down = columns @ columns_to < 0, rows @ rows_to < 0
    heights, widths = np.array([image.shape for image in images]).reshape(-1, 2).T
    origins = grids.origins_mm + (right_to_left * (widths - 1))[:, None] * columns
    origins = origins + (upside_down * (heights - 1))[:, None] * rows
    columns, rows = np.where(right_to_left, -1, 1)[:, None] * columns, np.where(upside_down, -1, 1)[:, None] * rows
    flips = zip(images, np.where(upside_down, -1, 1), np.where(right_to_left, -1, 1), strict=True)
    return Grids(origins, columns, rows), [image[::down, ::across] for image, down, across in flips]


def tilts_deg(grids: Grids, kind: str) -> np.ndarray:
    """(N,) angles between slices and the body plane of their kind."""
    cosines = np.abs(grids.normals @ CANONICAL_AXES[body_plane(kind)][2])
    return np.degrees(np.arccos(np.minimum(1.0, cosines)))


def group_parallel(
    grids: Grids, shapes: Sequence[tuple[int, ...]], angle_deg: float = 2.0, spacing_ratio: float = 0.01
) -> list[list[int]]:
    """Indices of the slices of each stack: same orientation, shape and pixel spacing, within tolerances of the first.

    Gaps do not split a stack.
    """
    spacings = grids.spacings_mm
    rows, columns = grids.rows_mm / spacings[:, :1], grids.columns_mm / spacings[:, 1:]
    least_cosine = math.cos(math.radians(angle_deg))
    groups: list[list[int]] = []
    left = list(range(len(shapes)))
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
