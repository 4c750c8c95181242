"""Losses of localisers that find the slice of a landmark: signed distances, logits that a slice shows its level, and
which slice is the nearest."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.data.samples.batch import Batch
from training.fitting.losses.registry import LossSum, loss
from training.networks.slice_volume import SlicesAndPlaces
from training.recipe_schema.fitting import Fitting

# Landmarks farther than this from every slice are shown by none.
REACH_MM = 10.0


def level_distance(
    outputs: Tensor,
    distance_mm: Tensor,
    *,
    scale_mm: float = 10.0,
    limit_mm: float = 60.0,
    near_mm: float = 10.0,
    near: float = 4.0,
    shows: float = 4.0,
) -> LossSum:
    """Smooth-L1 of predicted distances (B, S, K, 2: mm, logit) against true ones (B, S, K), where these are finite.

    The error turns from square to absolute at `scale_mm`.  True distances are clipped at `limit_mm`.  A slice at
    distance d weighs 1 + near × exp(-(d / near_mm)² / 2), as the nearest slice is the one to be found.  `shows` weighs
    the mean of level_classes on the logits, which is added.  Source: 2nd place, whose loss has these two parts.
    """
    known = distance_mm.isfinite()
    truth = torch.where(known, distance_mm, 0.0).float().clamp(-limit_mm, limit_mm)
    weight = known * (1 + near * torch.exp(-0.5 * (truth / near_mm) ** 2))
    error = functional.smooth_l1_loss(outputs[..., 0].float() / scale_mm, truth / scale_mm, reduction="none")
    total = (torch.where(known, error, 0.0) * weight).sum()
    return LossSum(total + shows * level_classes(outputs[..., 1:], distance_mm).mean * weight.sum(), weight.sum())


def level_classes(
    outputs: Tensor,
    distance_mm: Tensor,
    *,
    gap_mm: float = 4.5,
    halving_mm: float = 4.5,
    foreground: float = 4.0,
) -> LossSum:
    """Cross entropy of logits (B, S, K, 1) that a slice shows a level, over slices with a known distance.

    The target is 1 within half a `gap_mm` between slices, and half as much with every `halving_mm` beyond; a slice
    weighs 1 + foreground × its target, as most slices show another level.  Source: the 7th place's level classifier.
    """
    known = distance_mm.isfinite()
    beyond_mm = (torch.where(known, distance_mm, 0.0).float().abs() - gap_mm / 2).clamp_min(0)
    target = 0.5 ** (beyond_mm / halving_mm)
    error = functional.binary_cross_entropy_with_logits(outputs[..., 0].float(), target, reduction="none")
    weight = known * (1 + foreground * target)
    return LossSum((torch.where(known, error, 0.0) * weight).sum(), weight.sum())


def slice_and_place(
    outputs: SlicesAndPlaces, points: Tensor, *, shape: tuple[int, int], distance_mm: Tensor, place: float = 1.0
) -> LossSum:
    """Cross entropy over slices against the one nearest to each landmark, plus `place` × L1 of normalised coordinates.

    points (B, K, 3): slice, row, column in pixels; shape: slices and size_px of the first view; distance_mm (B, S, K),
    NaN = unknown.  Landmarks farther than REACH_MM from every slice are left out.  Source: the 1st place.
    """
    sliced = nearest_slice(outputs.slices, distance_mm)
    known = (distance_mm.abs().nan_to_num(torch.inf).amin(1) <= REACH_MM) & points.isfinite().all(2)  # (B, K)
    extent = points.new_tensor([shape[0], shape[1], shape[1]])
    target = (torch.where(known[..., None], points, 0.0).float() + 0.5) / extent
    error = (outputs.place.float() - target).abs().sum(2)
    return LossSum(sliced.total + place * (error * known).sum(), sliced.weight)


def nearest_slice(logits: Tensor, distance_mm: Tensor) -> LossSum:
    """Cross entropy over slices of logits (B, S, K) against the slice nearest to each landmark.

    distance_mm (B, S, K), NaN = unknown; landmarks farther than REACH_MM from every slice are left out.
    """
    nearest, index = distance_mm.abs().nan_to_num(torch.inf).min(1)  # (B, K)
    known = nearest <= REACH_MM
    error = functional.cross_entropy(logits.float(), index, reduction="none")
    return LossSum((error * known).sum(), known.sum().to(error))


def _distances(batch: Batch) -> Tensor:
    """(B, S, K) mm, NaN where unknown or where the first view is missing."""
    if batch.distance_mm is None:
        raise ValueError("losses of slices need distance_mm, which only localisers have")
    return torch.where(batch.present[:, :1, None] > 0, batch.distance_mm, torch.nan)


@loss("slice_and_place", slice_and_place, given=("shape", "distance_mm"))
def _place_loss(outputs: SlicesAndPlaces, batch: Batch, fitting: Fitting) -> LossSum:
    shape, distance_mm = (batch.views[0].shape[1], batch.views[0].shape[-1]), _distances(batch)
    return slice_and_place(outputs, batch.target, shape=shape, distance_mm=distance_mm, **fitting.loss_options)


@loss("level_distance", level_distance)
def _distance_loss(outputs: Tensor, batch: Batch, fitting: Fitting) -> LossSum:
    return level_distance(outputs, _distances(batch), **fitting.loss_options)


@loss("level_classes", level_classes)
def _classes_loss(outputs: Tensor, batch: Batch, fitting: Fitting) -> LossSum:
    return level_classes(outputs, _distances(batch), **fitting.loss_options)
