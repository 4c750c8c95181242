"""Slices of a volume: which are not blank, packing these for a 2D encoder, and unpacking."""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 3  # a slice, the one before and the one after


def real_slices(view: Tensor) -> Tensor:
    """(B, S) bool of (B, S, H, W): slices that are not blank; views of short stacks are padded with blank ones."""
    return view.abs().amax((2, 3)) > 0


def never_empty(chosen: Tensor) -> Tensor:
    """(B, S) bool with the first slice added for samples without any: networks need at least one image."""
    return torch.cat([chosen[:, :1] | ~chosen.any(1, keepdim=True), chosen[:, 1:]], 1)


def pick(images: Tensor, chosen: Tensor) -> Tensor:
    """(N, …): the chosen slices (B, S) of (B, S, …).

    Blank slices would take half of an axial volume's time, and bias the statistics of batch normalisation.
    """
    return images.flatten(0, 1)[chosen.flatten()]


def spread(picked: Tensor, chosen: Tensor) -> Tensor:
    """(B, S, …) from (N, …): the reverse of pick; slices that were not chosen are copies of others."""
    place = (chosen.flatten().long().cumsum(0) - 1).clamp_min(0)
    return picked[place].reshape(-1, chosen.shape[1], *picked.shape[1:])


def with_neighbours(view: Tensor, real: Tensor) -> Tensor:
    """(B, S, 3, H, W): each slice with its neighbours; a missing neighbour is the slice itself."""
    before, after = (torch.cat(parts, 1) for parts in ([view[:, :1], view[:, :-1]], [view[:, 1:], view[:, -1:]]))
    real_before, real_after = (torch.cat(p, 1) for p in ([real[:, :1], real[:, :-1]], [real[:, 1:], real[:, -1:]]))
    before = torch.where(real_before[..., None, None], before, view)
    after = torch.where(real_after[..., None, None], after, view)
    return torch.stack([before, view, after], 2)
