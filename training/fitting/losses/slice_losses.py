"""Losses of networks that say how far each slice is from each level, and whether it shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.data.samples.batch import Batch
from training.fitting.losses.loss_sum import LossSum
from training.recipe.fitting import Fitting


def level_distance(
    said: Tensor,
    distance_mm: Tensor,
    *,
    scale_mm: float = 10.0,
    limit_mm: float = 60.0,
    near_mm: float = 10.0,
    near: float = 4.0,
    shows: float = 4.0,
) -> LossSum:
    """Smooth-L1 of said (B, S, K, 2) distances against true ones (B, S, K), over slices where these are known (finite).

    The error turns from square to absolute at `scale_mm`.  True distances end at `limit_mm`: how far away a far level
    is does not matter.  A slice at distance d weighs 1 + near × exp(-(d / near_mm)² / 2), since the nearest one is what
    is asked for.  To its mean comes, `shows` times, that of level_classes of the logits.  Source: seed 000, whose loss
    has these two parts.
    """
    known = distance_mm.isfinite()
    truth = torch.where(known, distance_mm, 0.0).float().clamp(-limit_mm, limit_mm)
    weight = known * (1 + near * torch.exp(-0.5 * (truth / near_mm) ** 2))
    error = functional.smooth_l1_loss(said[..., 0].float() / scale_mm, truth / scale_mm, reduction="none")
    total = (torch.where(known, error, 0.0) * weight).sum()
    return LossSum(total + shows * level_classes(said[..., 1:], distance_mm).mean * weight.sum(), weight.sum())


def level_classes(
    said: Tensor,
    distance_mm: Tensor,
    *,
    gap_mm: float = 4.5,
    halving_mm: float = 4.5,
    foreground: float = 4.0,
) -> LossSum:
    """Cross entropy of logits said (B, S, K, 1) that a slice shows a level, over slices whose distance is known.

    The target is 1 within half a `gap_mm` between slices, and half as much with every `halving_mm` beyond; a slice
    weighs 1 + foreground × its target, as most slices show another level.  Source: seed 001's level classifier.
    """
    known = distance_mm.isfinite()
    beyond_mm = (torch.where(known, distance_mm, 0.0).float().abs() - gap_mm / 2).clamp_min(0)
    target = 0.5 ** (beyond_mm / halving_mm)
    error = functional.binary_cross_entropy_with_logits(said[..., 0].float(), target, reduction="none")
    weight = known * (1 + foreground * target)
    return LossSum((torch.where(known, error, 0.0) * weight).sum(), weight.sum())


def _distances(batch: Batch) -> Tensor:
    """(B, S, K), NaN where unknown, also where there is nothing to look at."""
    if batch.distance_mm is None:
        raise ValueError("losses of slices need distance_mm, which only localisers have")
    return torch.where(batch.present[:, :1, None] > 0, batch.distance_mm, torch.nan)


def _distance_loss(outputs: Tensor, batch: Batch, fitting: Fitting) -> LossSum:
    return level_distance(outputs, _distances(batch), **fitting.loss_options)


def _classes_loss(outputs: Tensor, batch: Batch, fitting: Fitting) -> LossSum:
    return level_classes(outputs, _distances(batch), **fitting.loss_options)


LOSSES: dict[str, Callable[[Any, Batch, Fitting], LossSum]] = {
    "level_distance": _distance_loss,
    "level_classes": _classes_loss,
}
