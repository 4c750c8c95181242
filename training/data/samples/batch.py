"""One batch: what the data side hands to the fitting loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Whose:
    """To what the rows and columns of a grader's targets belong."""

    studies: torch.Tensor
    """(B,) int64, the batch's studies counted from 0."""
    groups: torch.Tensor
    """(K,) int64, place of each target's condition in kernels.lumbar.labels.GROUPS."""


@dataclass(frozen=True)
class Batch:
    """B samples of one member, on the device, augmented and normalised."""

    views: tuple[torch.Tensor, ...]
    """One (B, slices, size_px, size_px) float32 tensor a view; zeros where the view is missing."""
    present: torch.Tensor
    """(B, views) float32 of 0 and 1."""
    target: torch.Tensor
    """Localisers: (B, K, 3) float32 slice, row, column in pixels of the first view, NaN where unknown.
    Graders: (B, K) int64 severities 0, 1, 2; -100 where there is no label."""
    distance_mm: torch.Tensor | None = None
    """(B, S, K) float32, how far each landmark lies beyond each slice of the first view, in the direction of growing
    slices (negative: before it); NaN where the landmark is unknown or the slice blank.  Localisers, and graders whose
    loss asks for it."""
    whose: Whose | None = None
    """Of graders."""
    other: torch.Tensor | None = None
    """Graders: targets of what was blended into the images; None where nothing was."""
    share: float = 1.0
    """How much of a blended image is its own."""

    @property
    def of_grader(self) -> Whose:
        """Raises ValueError where the batch is not a grader's."""
        if self.whose is None:
            raise ValueError("this loss is for graders: its batches say to which studies and conditions targets belong")
        return self.whose

    @property
    def known_distances(self) -> torch.Tensor:
        """Raises ValueError where the batch has no distances."""
        if self.distance_mm is None:
            raise ValueError("this loss needs the distances of slices from landmarks, which this batch does not have")
        return self.distance_mm


class Samples(Protocol):
    """The samples of one member in one fold."""

    steps_per_epoch: int

    def training(self, epoch: int) -> Iterator[Batch]:
        """Shuffled, augmented batches; the same epoch number always gives the same batches."""
        ...

    def validation(self) -> Iterator[Batch]:
        """All samples of the held-out studies, in order, not augmented."""
        ...
