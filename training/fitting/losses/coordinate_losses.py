"""Losses of localisers that regress coordinates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.data.samples.batch import Batch
from training.fitting.losses.registry import LossSum, loss
from training.fitting.losses.target_heatmaps import known_points
from training.networks.coordinates import Places
from training.recipe_schema.fitting import Fitting

# Smooth-L1 changes from square to absolute at 1: at an eighth of the image once places are multiplied by this.
PLACE_SCALE = 8.0
# Landmarks farther than this from every slice lie beyond the stack or in a gap between stacks.
REACH_MM = 10.0


def coordinate_smooth_l1(
    places: Places,
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
    """Smooth-L1 of normalised coordinates, plus cross entropies of confidence and attention, over known points.

    points (B, K, 3): slice, row, column in pixels; shape: slices and size_px of the first view; known (B, K) bool.
    Points that no slice covers (B, K) only train the confidence.  `confidence` weighs the cross entropy of the logit;
    its target is 1 where the point is covered and the current prediction lies within `hit_px` in plane (default: a 64th
    of the image, about 5 mm of a sagittal one) and, where slices are regressed, within `hit_slices`.  `attention`
    weighs the cross entropy of the attention map against a gaussian with a sigma of one cell (Nibali et al. 2018 with
    another divergence); 0 is the published loss (7th place).  The weight counts coordinates.
    """
    slices, size_px = shape
    axes = places.place.shape[-1]
    extent = points.new_tensor([slices, size_px, size_px])[-axes:]
    target = (torch.where(known[..., None], points, 0.0)[..., -axes:].float() + 0.5) / extent  # (B, K, axes)
    error = functional.smooth_l1_loss(PLACE_SCALE * places.place, PLACE_SCALE * target, reduction="none").sum(2)
    miss = (places.place - target).detach() * extent
    hit = miss[..., -2:].norm(dim=-1) <= (size_px / 64 if hit_px is None else hit_px)
    if axes == 3:
        hit = hit & (miss[..., 0].abs() <= hit_slices)
    hit = hit & covered
    doubt = functional.binary_cross_entropy_with_logits(places.logit, hit.float(), reduction="none")  # (B, K)
    if attention > 0:
        error = error - attention * axes * (places.attention * _gaussian(places.attention, target)).flatten(2).sum(2)
    error = error * covered + confidence * axes * doubt
    return LossSum((error * known).sum(), known.sum().to(error.dtype) * axes)


def _gaussian(grid: Tensor, target: Tensor) -> Tensor:
    """(B, K, *grid) shares that sum to 1: a gaussian with a sigma of one cell around (B, K, axes) places.

    A grid without slices uses rows and columns only.
    """
    shares = grid.new_ones(grid.shape[:2])
    axes = grid.dim() - 2
    for number, cells in enumerate(grid.shape[2:]):
        centre = target[..., target.shape[-1] - axes + number, None] * cells - 0.5
        along = (-0.5 * (torch.arange(cells, device=grid.device) - centre) ** 2).softmax(2)
        shares = shares[..., None] * along.reshape(*along.shape[:2], *[1] * number, cells)
    return shares


@loss("coordinate_smooth_l1", coordinate_smooth_l1, given=("shape", "known", "covered"))
def _coordinate_loss(outputs: Places, batch: Batch, fitting: Fitting) -> LossSum:
    known = known_points(batch.target) & (batch.present[:, :1] > 0)
    covered = torch.ones_like(known)
    if batch.distance_mm is not None:
        covered = batch.distance_mm.abs().nan_to_num(torch.inf).amin(1) <= REACH_MM
    view = batch.views[0]
    shape = (view.shape[1], view.shape[-1])
    given = {"shape": shape, "known": known, "covered": covered}
    return coordinate_smooth_l1(outputs, batch.target, **given, **fitting.loss_options)  # type: ignore[arg-type]
