"""Losses of localisers that find the slice of each level: signed distances, and logits that a slice shows it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.data.samples.batch import Batch
from training.fitting.losses.registry import LossSum, loss
from training.recipe_schema.fitting import Fitting


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


def _distances(batch: Batch) -> Tensor:
    """(B, S, K) mm, NaN where unknown or where the first view is missing."""
    if batch.distance_mm is None:
        raise ValueError("losses of slices need distance_mm, which only localisers have")
    return torch.where(batch.present[:, :1, None] > 0, batch.distance_mm, torch.nan)


@loss("level_distance", level_distance)
def _distance_loss(outputs: Tensor, batch: Batch, fitting: Fitting) -> LossSum:
    return level_distance(outputs, _distances(batch), **fitting.loss_options)


@loss("level_classes", level_classes)
def _classes_loss(outputs: Tensor, batch: Batch, fitting: Fitting) -> LossSum:
    return level_classes(outputs, _distances(batch), **fitting.loss_options)
