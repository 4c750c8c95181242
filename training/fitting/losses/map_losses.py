"""Losses of localisers that predict heatmaps: one for each landmark, or one for each slice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.data.samples.batch import Batch
from training.fitting.losses.registry import LossSum, loss
from training.fitting.losses.target_heatmaps import gaussian_heatmaps, known_points
from training.recipe_schema.fitting import Fitting

# Two slices away the published target is a quarter; smaller weights are cut to 0.
LEAST_WEIGHT = 0.2


def heatmap_mse(
    maps: Tensor, points: Tensor, *, size_px: int, sigma_px: float, known: Tensor | None = None, foreground: float = 0.0
) -> LossSum:
    """Mean squared error of maps (B, K, h, w) against gaussians of height 1 at points (B, K, 3), over known points.

    A pixel weighs 1 + foreground × its target; 0 is the published loss.  A gaussian covers few pixels, so that an
    untrained network gains most of that loss by answering zero.  `known` (B, K) excludes more landmarks than NaN does.
    """
    target = gaussian_heatmaps(points, size_px=size_px, map_px=maps.shape[-1], sigma_px=sigma_px)  # (B, K, h, w)
    counted = known_points(points) if known is None else known_points(points) & known
    error = (maps.float() - target) ** 2
    if foreground > 0:
        error = error * (1 + foreground * target)
    total = (error.mean((2, 3)) * counted).sum()
    return LossSum(total, counted.sum().to(total.dtype))


@loss("heatmap_mse", heatmap_mse, given=("size_px", "sigma_px", "known", "foreground"))
def _heatmap_loss(outputs: Tensor, batch: Batch, fitting: Fitting) -> LossSum:
    shown = (batch.present[:, :1] > 0).expand(batch.target.shape[:2])
    size_px, sigma_px, foreground = batch.views[0].shape[-1], fitting.sigma_px, fitting.foreground
    return heatmap_mse(outputs, batch.target, size_px=size_px, sigma_px=sigma_px, known=shown, foreground=foreground)


def slice_weights(distance_mm: Tensor, *, halving_mm: float, farthest_mm: float) -> Tensor:
    """Target weight of each slice for each landmark: (B, S, K) from (B, S, K) signed distances in mm.

    1 in the nearest slice, halved for each `halving_mm` that another slice is farther away: 1, 1/2, 1/4 as published,
    for slices that far apart.  By distance and not by index, as neighbouring slices may belong to two stacks, which may
    show the same place.  All are 0 where the landmark is unknown or farther than `farthest_mm` from every slice.
    """
    away = distance_mm.float().abs()
    away = torch.where(away.isfinite(), away, torch.inf)
    nearest = away.amin(1, keepdim=True)
    shown = away.isfinite() & (nearest <= farthest_mm)
    excess = torch.where(shown, away - nearest, 0.0)
    weight = 0.5 ** (excess / halving_mm) * shown
    return weight * (weight >= LEAST_WEIGHT)


def heat_and_pointer_bce(
    outputs: Any,
    batch: Batch,
    *,
    sigma_px: float,
    foreground: float = 0.0,
    halving_mm: float = 4.5,
    farthest_mm: float = 10.0,
) -> LossSum:
    """Loss of heat_pointer.HeatAndPointer: binary cross entropies of heat and pointer, over known targets.

    Heat: the mean over all pixels of the slices that show the target, against a gaussian with the slice's weight as its
    peak; where targets share a map, against the sum of theirs.  Pointer: the mean over the slices that are not blank,
    against the slice's weight.  `foreground`: a pixel weighs 1 + foreground × its target value.  Source: 5th place.
    """
    heat, pointer, real, heat_of = outputs  # (B, S, C, h, w), (B, S, K), (B, S), (K,)
    assert batch.distance_mm is not None
    known = known_points(batch.target) & (batch.present[:, :1] > 0)
    weight = slice_weights(batch.distance_mm, halving_mm=halving_mm, farthest_mm=farthest_mm) * known[:, None]
    shows = (weight > 0).float()
    known = known & (shows.amax(1) > 0)
    per_map = _heat_errors(heat, batch, weight, heat_of, sigma_px, foreground)
    per_target = (per_map[:, :, heat_of] * shows).sum(1) / shows.sum(1).clamp_min(1)  # (B, K)
    shown = real[..., None].float()
    error = functional.binary_cross_entropy_with_logits(pointer.float(), weight, reduction="none")
    per_target = per_target + (error * shown).sum(1) / shown.sum(1).clamp_min(1)
    return LossSum((per_target * known).sum(), known.sum().to(per_target.dtype))


def _heat_errors(
    heat: Tensor, batch: Batch, weight: Tensor, heat_of: Tensor, sigma_px: float, foreground: float
) -> Tensor:
    """(B, S, C) mean error of each map that shows a target; 0 for the others."""
    size_px, map_px = batch.views[0].shape[-1], heat.shape[-1]
    gaussians = gaussian_heatmaps(batch.target, size_px=size_px, map_px=map_px, sigma_px=sigma_px)
    shared = functional.one_hot(heat_of, heat.shape[2]).to(weight.dtype)
    target = torch.einsum("bsk,kc,bkyx->bscyx", weight, shared, gaussians).clamp_max(1)  # (B, S, C, h, w)
    shows = torch.einsum("bsk,kc->bsc", weight, shared) > 0
    wanted = target[shows]  # (N, h, w)
    error = functional.binary_cross_entropy_with_logits(heat[shows].float(), wanted, reduction="none")
    error = (error * (1 + foreground * wanted)).mean((1, 2))
    return torch.zeros_like(weight[:, :, :1]).repeat(1, 1, heat.shape[2]).masked_scatter(shows, error)


def heatmap_correlation(outputs: Any, batch: Batch, *, sigma_px: float) -> LossSum:
    """Loss of roi_maps.RoiMaps: 1 − squared normalised correlation of the maps with a gaussian, mean over used slices.

    Independent of a map's scale; all slices of a view share the target.  Source: 133rd place.
    """
    maps, used = outputs
    size_px, map_px = batch.views[0].shape[-1], maps.shape[-1]
    target = gaussian_heatmaps(batch.target, size_px=size_px, map_px=map_px, sigma_px=sigma_px)[:, None].flatten(3)
    flat = maps.float().flatten(3)  # (B, S, K, h·w)
    product = (flat * target).sum(3) ** 2
    alike = product / ((flat**2).sum(3) * (target**2).sum(3)).clamp_min(1e-12)  # (B, S, K)
    slices = used[..., None].float()
    per_target = ((1 - alike) * slices).sum(1) / slices.sum(1).clamp_min(1)
    known = known_points(batch.target) & (batch.present[:, :1] > 0) & (slices.amax(1) > 0)
    return LossSum((per_target * known).sum(), known.sum().to(per_target.dtype))


@loss("heat_and_pointer_bce", heat_and_pointer_bce, given=("sigma_px", "foreground"))
def _heat_pointer_loss(outputs: Any, batch: Batch, fitting: Fitting) -> LossSum:
    sigma_px, foreground = fitting.sigma_px, fitting.foreground
    return heat_and_pointer_bce(outputs, batch, sigma_px=sigma_px, foreground=foreground, **fitting.loss_options)


@loss("heatmap_correlation", heatmap_correlation, given=("sigma_px",))
def _correlation_loss(outputs: Any, batch: Batch, fitting: Fitting) -> LossSum:
    return heatmap_correlation(outputs, batch, sigma_px=fitting.sigma_px)
