"""Losses of localisers that answer with a map for each slice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.data.samples.batch import Batch
from training.fitting.losses.loss_sum import LossSum
from training.fitting.losses.target_heatmaps import gaussian_heatmaps, known_points
from training.recipe.fitting import Fitting

# Two slices away the published target is a quarter; what is fainter is no target at all.
LEAST_WEIGHT = 0.2


def slice_weights(distance_mm: Tensor, *, halving_mm: float, farthest_mm: float) -> Tensor:
    """How much each slice shows of each landmark: (B, S, K) weights of (B, S, K) signed distances in mm.

    1 in the nearest slice, wherever in the stack that lies, and half of it for each `halving_mm` that another slice is
    farther away: 1, 1/2, 1/4 as published where slices are so far apart.  By distance instead of by counting, as slices
    next to each other may belong to two stacks, and two of these may show the same place.  All are 0 where the landmark
    is unknown, or farther than `farthest_mm` from every slice.
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
    """Loss of heat_pointer.HeatAndPointer: for each known target binary cross entropy of its heat, plus of its pointer.

    Heat: the mean over all pixels of the slices that show the target, against a gaussian with the slice's weight as its
    peak; where targets share a map, against the sum of theirs.  Pointer: the mean over the slices that are not blank,
    against the slice's weight.  `foreground`: a pixel weighs 1 + foreground × its target value.  Source: seed 002.
    """
    heat, pointer, real, heat_of = outputs
    assert batch.distance_mm is not None
    known = known_points(batch.target) & (batch.present[:, :1] > 0)
    weight = slice_weights(batch.distance_mm, halving_mm=halving_mm, farthest_mm=farthest_mm) * known[:, None]
    shows = (weight > 0).float()
    known = known & (shows.amax(1) > 0)
    per_map = _heat_errors(heat, batch, weight, heat_of, sigma_px, foreground)
    per_target = (per_map[:, :, heat_of] * shows).sum(1) / shows.sum(1).clamp_min(1)
    seen = real[..., None].float()
    error = functional.binary_cross_entropy_with_logits(pointer.float(), weight, reduction="none")
    per_target = per_target + (error * seen).sum(1) / seen.sum(1).clamp_min(1)
    return LossSum((per_target * known).sum(), known.sum().to(per_target.dtype))


def _heat_errors(
    heat: Tensor, batch: Batch, weight: Tensor, heat_of: Tensor, sigma_px: float, foreground: float
) -> Tensor:
    """(B, S, C) mean errors of the maps that show a target; 0 for others."""
    size_px, map_px = batch.views[0].shape[-1], heat.shape[-1]
    gaussians = gaussian_heatmaps(batch.target, size_px=size_px, map_px=map_px, sigma_px=sigma_px)
    shared = functional.one_hot(heat_of, heat.shape[2]).to(weight.dtype)
    target = torch.einsum("bsk,kc,bkyx->bscyx", weight, shared, gaussians).clamp_max(1)
    shows = torch.einsum("bsk,kc->bsc", weight, shared) > 0
    wanted = target[shows]
    error = functional.binary_cross_entropy_with_logits(heat[shows].float(), wanted, reduction="none")
    error = (error * (1 + foreground * wanted)).mean((1, 2))
    return torch.zeros_like(weight[:, :, :1]).repeat(1, 1, heat.shape[2]).masked_scatter(shows, error)


def heatmap_correlation(outputs: Any, batch: Batch, *, sigma_px: float) -> LossSum:
    """Loss of roi_maps.RoiMaps: 1 − squared normalised correlation of the maps with a gaussian, mean over used slices.

    Whatever its scale, a map is judged by its shape alone; all slices of a view share the place.  Source: seed 004.
    """
    maps, used = outputs
    size_px, map_px = batch.views[0].shape[-1], maps.shape[-1]
    target = gaussian_heatmaps(batch.target, size_px=size_px, map_px=map_px, sigma_px=sigma_px)[:, None].flatten(3)
    shape = maps.float().flatten(3)
    product = (shape * target).sum(3) ** 2
    alike = product / ((shape**2).sum(3) * (target**2).sum(3)).clamp_min(1e-12)
    slices = used[..., None].float()
    per_target = ((1 - alike) * slices).sum(1) / slices.sum(1).clamp_min(1)
    known = known_points(batch.target) & (batch.present[:, :1] > 0) & (slices.amax(1) > 0)
    return LossSum((per_target * known).sum(), known.sum().to(per_target.dtype))


def _heat_pointer_loss(outputs: Any, batch: Batch, fitting: Fitting) -> LossSum:
    sigma_px, foreground = fitting.sigma_px, fitting.foreground
    return heat_and_pointer_bce(outputs, batch, sigma_px=sigma_px, foreground=foreground, **fitting.loss_options)


def _correlation_loss(outputs: Any, batch: Batch, fitting: Fitting) -> LossSum:
    return heatmap_correlation(outputs, batch, sigma_px=fitting.sigma_px, **fitting.loss_options)


LOSSES: dict[str, Callable[[Any, Batch, Fitting], LossSum]] = {
    "heat_and_pointer_bce": _heat_pointer_loss,
    "heatmap_correlation": _correlation_loss,
}
