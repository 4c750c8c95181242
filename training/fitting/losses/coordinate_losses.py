"""Losses of networks that answer landmarks as numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.data.samples.batch import Batch
from training.fitting.losses.loss_sum import LossSum
from training.fitting.losses.target_heatmaps import known_points
from training.networks.coordinates import Places
from training.recipe.fitting import Fitting

# Smooth-L1 changes from square to absolute at 1: at an eighth of the image once places are multiplied by this.
PLACE_SCALE = 8.0
# A landmark farther than this from the nearest slice lies beyond the ends of the stack, or between two stacks.
REACH_MM = 10.0


def coordinate_smooth_l1(
    said: Places,
    points: Tensor,
    *,
    shape: tuple[int, int],
    known: Tensor,
    covered: Tensor,
    confidence: float = 0.1,
    hit_px: float | None = None,
    hit_slices: float = 1.0,
    attention: float = 0.0,
) -> LossSum:
    """Smooth-L1 of normalised places, with cross entropies of confidence and attention, over known points.

    points (B, K, 3): slice, row, column in pixels; shape: slices and size_px of the first view; known (B, K) bool.
    Of points that are not covered (B, K), as no slice shows them, only the confidence is learned.  `confidence` weighs
    the cross entropy of its logit, whose target is 1 where the point is covered and the place, as it is now, lies
    within `hit_px` in plane (by default a 64th of the image, about 5 mm of a sagittal one) and, where slices are
    regressed, within `hit_slices`.  `attention` weighs that of the attention against a gaussian of one cell around the
    point (Nibali et al. 2018 with another divergence); 0 is the published loss (seed 001), whose weight counts numbers.
    """
    slices, size_px = shape
    axes = said.place.shape[-1]
    extent = points.new_tensor([slices, size_px, size_px])[-axes:]
    wanted = (torch.where(known[..., None], points, 0.0)[..., -axes:].float() + 0.5) / extent
    error = functional.smooth_l1_loss(PLACE_SCALE * said.place, PLACE_SCALE * wanted, reduction="none").sum(2)
    miss = (said.place - wanted).detach() * extent
    hit = miss[..., -2:].norm(dim=-1) <= (size_px / 64 if hit_px is None else hit_px)
    if axes == 3:
        hit = hit & (miss[..., 0].abs() <= hit_slices)
    hit = hit & covered
    doubt = functional.binary_cross_entropy_with_logits(said.logit, hit.float(), reduction="none")
    if attention > 0:
        error = error - attention * axes * (said.attention * _gaussian(said.attention, wanted)).flatten(2).sum(2)
    error = error * covered + confidence * axes * doubt
    return LossSum((error * known).sum(), known.sum().to(error.dtype) * axes)


def _gaussian(grid: Tensor, wanted: Tensor) -> Tensor:
    """(B, K, *grid) shares that sum to 1, gaussian with a standard deviation of one cell around (B, K, axes) places.

    A grid without slices looks at rows and columns only.
    """
    shares = grid.new_ones(grid.shape[:2])
    axes = grid.dim() - 2
    for number, cells in enumerate(grid.shape[2:]):
        centre = wanted[..., wanted.shape[-1] - axes + number, None] * cells - 0.5
        along = (-0.5 * (torch.arange(cells, device=grid.device) - centre) ** 2).softmax(2)
        shares = shares[..., None] * along.reshape(*along.shape[:2], *[1] * number, cells)
    return shares


def _coordinate_loss(outputs: Places, batch: Batch, fitting: Fitting) -> LossSum:
    known = known_points(batch.target) & (batch.present[:, :1] > 0)
    covered = torch.ones_like(known)
    if batch.distance_mm is not None:
        covered = batch.distance_mm.abs().nan_to_num(torch.inf).amin(1) <= REACH_MM
    view = batch.views[0]
    shape = (view.shape[1], view.shape[-1])
    return coordinate_smooth_l1(
        outputs, batch.target, shape=shape, known=known, covered=covered, **fitting.loss_options
    )


LOSSES: dict[str, Callable[[Any, Batch, Fitting], LossSum]] = {"coordinate_smooth_l1": _coordinate_loss}
