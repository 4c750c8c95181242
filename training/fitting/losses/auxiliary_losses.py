"""Losses of auxiliary heads, and the loss of a network's outputs with or without them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from training.data.samples.batch import Batch
from training.data.tables import MISSING
from training.fitting.losses.registry import LOSSES, LossSum, outputs_of
from training.fitting.losses.slice_losses import nearest_slice
from training.networks.parts.auxiliary import Headed
from training.recipe_schema.fitting import Fitting


def answer(net: nn.Module, batch: Batch, fitting: Fitting) -> tuple[LossSum, Any]:
    """Forward pass on a batch: the loss that the recipe names, and the outputs it was computed from."""
    outputs = outputs_of(net)(*batch.views, batch.present)
    return loss_of(outputs, batch, fitting), outputs


def loss_of(outputs: Any, batch: Batch, fitting: Fitting) -> LossSum:
    """The loss that a recipe names, and those of auxiliary heads by their weights, in units of its weight."""
    loss = LOSSES[fitting.loss]
    if not isinstance(outputs, Headed):
        return loss(outputs, batch, fitting)
    own = loss(outputs.logits, batch, fitting)
    further = torch.zeros_like(own.total)
    if outputs.depth is not None:
        shown = torch.where(batch.present[:, :1, None] > 0, batch.known_distances, torch.nan)
        further = further + fitting.auxiliary.depth * nearest_slice(outputs.depth, shown).mean
    if outputs.streams is not None:
        views = outputs.streams.shape[1]
        losses = [loss(outputs.streams[:, view], _where_shown(batch, view), fitting).mean for view in range(views)]
        further = further + fitting.auxiliary.streams * torch.stack(losses).mean()
    return LossSum(own.total + own.weight * further, own.weight)


def _where_shown(batch: Batch, view: int) -> Batch:
    """The batch without the labels of samples that lack a view."""
    shown = batch.present[:, view] > 0
    other = None if batch.other is None else _labels_of(shown, batch.other)
    return replace(batch, target=_labels_of(shown, batch.target), other=other)


def _labels_of(shown: Tensor, target: Tensor) -> Tensor:
    """Severities (B, K), or masses (B, K, 3) of soft labels, of the `shown` (B,) samples alone."""
    if target.dim() == 3:
        return target * shown[:, None, None]
    return torch.where(shown[:, None], target, MISSING)
