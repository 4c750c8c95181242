"""A decoded study: stacks of parallel slices in canonical order, and its problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..labels import SERIES_KINDS
from ..problems import Problem
from .geometry import Grids, Plane, body_plane


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel slices of one series.

    Sagittal slices run to patient left and have rows head → feet, columns anterior → posterior; axial slices run
    head → feet and have rows anterior → posterior, columns patient right → left.
    """

    series_id: str
    kind: str
    """One of labels.SERIES_KINDS' values."""
    pixels: np.ndarray
    """(slice, H, W) uint8, one grey window for the whole stack."""
    planes: tuple[Plane, ...]
    """One per slice; gaps may be uneven."""
    instances: tuple[int, ...]
    """One per slice: the file's number, `instance_number` of train_label_coordinates.csv."""
    assumed: bool = False
    """True where the files have no geometry and a standard one was assumed: no projection from other series."""

    @cached_property
    def centres_mm(self) -> np.ndarray:
        """(slice, 3) centre of each slice."""
        return self._grids.to_patient(*self.centre)

    @cached_property
    def positions_mm(self) -> np.ndarray:
        """(slice,) position of each slice along the stack, increasing."""
        return self.position_mm(self.centres_mm)

    def position_mm(self, points_mm: np.ndarray) -> np.ndarray:
        """Position of (..., 3) points along the stack."""
        return points_mm @ self._along

    @cached_property
    def _along(self) -> np.ndarray:
        # Canonical stacks run against the normal of their slices.
        return -self._grids.normals.mean(0)

    @property
    def centre(self) -> tuple[float, float]:
        """Row and column of the centre of a slice."""
        return (self.pixels.shape[1] - 1) / 2, (self.pixels.shape[2] - 1) / 2

    def to_pixels(self, point_mm: np.ndarray) -> np.ndarray:
        """(slice, 3) row and column of the point's projection on every slice, and its signed distance in mm."""
        matrices, offsets = self._grids.projection
        return matrices @ point_mm - offsets

    @cached_property
    def _grids(self) -> Grids:
        return Grids.of(self.planes)


@dataclass
class Study:
    """All usable stacks of a study, in no particular order, and the problems of the rest."""

    study_id: str
    stacks: tuple[Stack, ...]
    problems: list[Problem]
    source_planes: Mapping[tuple[str, int], Plane] = field(default_factory=dict, repr=False)
    """(series id, instance) → plane of the file's own pixel grid, as stored."""

    def of_kind(self, kind: str) -> tuple[Stack, ...]:
        """The stacks of one series kind."""
        return tuple(stack for stack in self.stacks if stack.kind == kind)

    def lift(self, series_id: str, instance: int, row: float, column: float) -> np.ndarray | None:
        """(3,) mm of a pixel of a file, in the file's own frame (train_label_coordinates.csv: x = column, y = row).

        None where the series holds no readable file of that number.
        """
        plane = self.source_planes.get((str(series_id), int(instance)))
        return None if plane is None else plane.to_patient(row, column)


def longest(stacks: Sequence[Stack]) -> Stack:
    """The stack with the most slices; ties: the first by name."""
    return min(stacks, key=lambda stack: (-len(stack.planes), stack.series_id))


def gaps(study: Study) -> list[Problem]:
    """Problems of a study as a whole: a missing series kind, a single slice, several grids in a sagittal series."""
    found = []
    for description, kind in SERIES_KINDS.items():
        stacks = study.of_kind(kind)
        slices = sum(len(stack.planes) for stack in stacks)
        if slices < 2:
            slug = "single-slice" if slices else "missing-kind"
            found.append(Problem(study.study_id, description, slug, f"{slices} usable slices of this kind"))
        if body_plane(kind) == "sagittal":  # axial series often have a stack a disc
            for series_id, count in Counter(stack.series_id for stack in stacks).items():
                if count > 1:
                    detail = f"{count} stacks that differ in size, spacing or orientation"
                    found.append(Problem(study.study_id, series_id, "several-stacks", detail))
    return found
