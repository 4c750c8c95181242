"""A batch of one network's samples, and the interface of sample sources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Origin:
    """Study of each sample and condition group of each target of a grader's batch."""

    studies: torch.Tensor
    """(B,) int64, number of the study within the batch, from 0."""
    groups: torch.Tensor
    """(K,) int64, index of each target's condition in kernels.lumbar.labels.GROUPS."""
    units: torch.Tensor | None = None
    """(B,) int64, index of each sample's unit (level, side) in kernels.lumbar.labels.UNITS."""


@dataclass(frozen=True)
class Batch:
    """B samples of one member, on the device, augmented and normalised."""

    views: tuple[torch.Tensor, ...]
    """One (B, slices, size_px, size_px) float32 tensor a view; zeros where the view is missing."""
    present: torch.Tensor
    """(B, views) float32 of 0 and 1."""
    target: torch.Tensor
    """Localisers: (B, K, 3) float32 slice, row, column in pixels of the first view, NaN where unknown.
    Graders: (B, K) int64 severities 0, 1, 2; -100 where there is no label.  With soft labels (B, K, 3) float32 masses,
    0 where nothing is known (training/data/soft_labels.py)."""
    distance_mm: torch.Tensor | None = None
    """(B, S, K) float32 signed distance (mm) of each landmark from each slice of the first view, positive towards
    higher slices; NaN if the landmark is unknown or the slice blank.  Localisers, and graders whose loss needs it."""
    origin: Origin | None = None
    """Graders only."""
    other: torch.Tensor | None = None
    """Graders: targets of the samples blended into the images (mixup, cutmix); None without blending."""
    share: float = 1.0
    """Share of a blended image that is its own."""
    pixel_mm: torch.Tensor | None = None
    """(B,) float32 size of a pixel of the first view; of held-out samples of known spacing."""

    @property
    def known_origin(self) -> Origin:
        """`origin`.  Raises ValueError for a localiser's batch."""
        if self.origin is None:
            raise ValueError("this loss is for graders: its batches record the study and condition of each target")
        return self.origin

    @property
    def known_distances(self) -> torch.Tensor:
        """`distance_mm`.  Raises ValueError for a batch without it."""
        if self.distance_mm is None:
            raise ValueError("this loss needs the distances of slices from landmarks, which this batch does not have")
        return self.distance_mm


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device, asynchronously if it is in pinned memory."""
    return tensor.to(device, non_blocking=True)


class Samples(Protocol):
    """The samples of one member in one fold."""

    steps_per_epoch: int

    def training(self, epoch: int) -> Iterator[Batch]:
        """Shuffled, augmented batches; the same epoch number always gives the same batches."""
        ...

    def validation(self) -> Iterator[Batch]:
        """All samples of the held-out studies, in order, not augmented."""
        ...
