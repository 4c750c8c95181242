"""One batch: what the data side hands to the fitting loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch


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
    """Localisers: (B, S, K) float32, how far each landmark lies beyond each slice of the first view, in the direction
    of growing slices (negative: before it); NaN where the landmark is unknown or the slice blank."""


class Samples(Protocol):
    """The samples of one member in one fold."""

    steps_per_epoch: int

    def training(self, epoch: int) -> Iterator[Batch]:
        """Shuffled, augmented batches; the same epoch number always gives the same batches."""
        ...

    def validation(self) -> Iterator[Batch]:
        """All samples of the held-out studies, in order, not augmented."""
        ...
