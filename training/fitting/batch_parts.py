"""Splits a batch: one part for each process and each round of gradient accumulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from training.data.samples.batch import Batch
from training.fitting import FitError


def units_in(batch: Batch, whole_studies: bool = False) -> int:
    """Samples of a batch, or studies where these are not split."""
    if whole_studies and batch.origin is not None:
        return int(batch.origin.studies.max()) + 1
    return len(batch.target)


def part_of(batch: Batch, number: int, count: int, whole_studies: bool = False) -> Batch:
    """Part `number` (from 0) of `count` nearly equal, contiguous parts; `whole_studies`: studies are not split.

    Raises FitError for more parts than samples, or studies.
    """
    if count == 1:
        return batch
    studies = batch.origin.studies if whole_studies and batch.origin is not None else None
    units = units_in(batch, whole_studies)
    if units < count:
        what = "samples" if studies is None else "studies"
        raise FitError(f"a batch of {units} {what} has no {count} parts: use fewer devices, or a smaller accumulate")
    first, end = units * number // count, units * (number + 1) // count
    if studies is None:
        chosen = torch.arange(first, end, device=batch.target.device)
    else:
        chosen = ((studies >= first) & (studies < end)).nonzero()[:, 0]
    part = _changed(batch, lambda tensor: tensor[chosen.to(tensor.device)])
    if studies is None or part.origin is None:
        return part
    return replace(part, origin=replace(part.origin, studies=part.origin.studies - first))


def at_least_two(batch: Batch) -> Batch:
    """A batch of one sample is duplicated: batch normalisation of a pooled, 1 × 1 map needs two."""
    if len(batch.target) > 1:
        return batch
    return _changed(batch, lambda tensor: tensor.repeat(2, *[1] * (tensor.ndim - 1)))


def _changed(batch: Batch, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """The same change of every per-sample tensor of a batch."""

    def changed(tensor: torch.Tensor | None) -> Any:
        return None if tensor is None else change(tensor)

    return replace(
        batch,
        views=tuple(change(view) for view in batch.views),
        origin=None
        if batch.origin is None
        else replace(batch.origin, studies=change(batch.origin.studies), units=changed(batch.origin.units)),
        **{name: changed(getattr(batch, name)) for name in ("present", "target", "distance_mm", "pixel_mm", "other")},
    )
