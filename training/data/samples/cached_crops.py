"""Batches from cached views: pixels, the central crop that the kernel would cut, slice windows, mirroring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from kernels.lumbar.inputs.mirroring import mirrored_points, mirrored_targets
from kernels.lumbar.inputs.views import mirror_pixels
from kernels.lumbar.labels import UNITS
from kernels.lumbar.specs import Member, ViewRequest
from training.data.cache.crop_cache import CachedView
from training.data.samples.augment import inside_only
from training.data.samples.batch import Batch
from training.data.samples.staging import send


class Change(NamedTuple):
    """(B, 2, 2) affine matrices and (B, 2) shifts in pixels of a batch."""

    matrix: torch.Tensor
    shift_px: torch.Tensor


def grid_of(request: ViewRequest) -> ViewRequest:
    """Key of views whose pixels show the same places: they are augmented alike."""
    return request.model_copy(update={"marks": (), "normalisation": "unit"})


def take(view: CachedView, indices: np.ndarray, out: torch.Tensor | None = None) -> torch.Tensor:
    """(B, slice, H, W) uint8 copied from the memory map in one call, to `out` where given."""
    places = indices if view.places is None else view.places[indices]
    if out is None:
        return torch.from_numpy(np.take(view.pixels, places, axis=0))
    # Mode "raise" would buffer `out`; the indices are never out of range.
    np.take(view.pixels, places, axis=0, out=out.numpy(), mode="clip")
    return out


def central(
    pixels: torch.Tensor, points: torch.Tensor, request: ViewRequest
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The centre of cached (B, slice, H, W) views, byte for byte what the kernel cuts; its points (B, K, 3); and (B, 1)
    the first slice."""
    first = (pixels.shape[1] - request.slices.count) // 2
    edge = (pixels.shape[-1] - request.size_px) // 2
    inner = slice(edge, edge + request.size_px)
    if points.dim() == 3:
        points = inside_only(points - torch.tensor([first, edge, edge], device=points.device), request.size_px)
    return pixels[:, first : first + request.slices.count, inner, inner], points, torch.full((len(pixels), 1), first)


def slice_window(
    pixels: torch.Tensor, count: int, jitter: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` consecutive slices of each of (B, slice, H, W), shifted by up to `jitter`, and (B, 1) the first."""
    spare = (pixels.shape[1] - count) // 2
    reach = min(jitter, spare)
    if not reach:
        return pixels[:, spare : spare + count], torch.full((len(pixels), 1), spare)
    first = torch.randint(spare - reach, spare + reach + 1, (len(pixels), 1), generator=generator)
    index = send(first + torch.arange(count), pixels.device)
    return pixels.gather(1, index[:, :, None, None].expand(-1, -1, *pixels.shape[2:])), first


def take_slices(distance_mm: torch.Tensor | None, first: torch.Tensor, count: int) -> torch.Tensor | None:
    """(B, count, K) of (B, S, K): the distances of the slice window that starts at `first` (B, 1)."""
    if distance_mm is None:
        return None
    index = send(first + torch.arange(count), distance_mm.device)
    return distance_mm.gather(1, index[:, :, None].expand(-1, -1, distance_mm.shape[2]))


def mirror_some(batch: Batch, member: Member, partners: Sequence[int], chosen: torch.Tensor) -> Batch:
    """The batch with the `chosen` (B,) samples mirrored left to right.

    `partners`: for each view the index of the view that shows it in the mirrored study.
    """
    unit, order = UNITS[member.unit][0], mirrored_targets(member)
    views = []
    for own, partner, request in zip(batch.views, partners, member.inputs, strict=True):
        sided = request.mirror_right and request.side(unit) is not None
        other = batch.views[partner] if sided else mirror_pixels(batch.views[partner], request.series)
        views.append(torch.where(chosen[:, None, None, None], other, own))
    present = torch.where(chosen[:, None], batch.present[:, list(partners)], batch.present)
    if member.role == "localiser":
        flipped = mirrored_points(member, batch.target, batch.views[0].shape[1:])
    else:
        flipped = batch.target[:, order]
    distance_mm = batch.distance_mm
    if distance_mm is not None:
        axial = member.inputs[0].series == "axial_t2"
        turned = distance_mm[..., order] if axial else -distance_mm[..., order].flip(1)
        distance_mm = torch.where(chosen[:, None, None], turned, distance_mm)
    chosen_target = chosen.view(-1, *(1,) * (batch.target.dim() - 1))
    target = torch.where(chosen_target, flipped, batch.target)
    return replace(batch, views=tuple(views), present=present, target=target, distance_mm=distance_mm)
