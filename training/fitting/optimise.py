"""Optimiser, learning-rate schedule, and exponential moving average (EMA) of the weights."""

from __future__ import annotations

import math

import torch
from timm.optim import param_groups_weight_decay
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from training.recipe_schema.fitting import Optimisation


def make_optimiser(net: nn.Module, optimisation: Optimisation) -> torch.optim.AdamW:
    """AdamW without weight decay of biases, norms and other vectors."""
    groups = param_groups_weight_decay(net, optimisation.weight_decay)
    return torch.optim.AdamW(groups, lr=optimisation.learning_rate, fused=True)


def rate_at(optimisation: Optimisation, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step (from 0): a pure function, so that a resumed run needs no scheduler state.

    Rises linearly through the warm-up, whose last step has the full rate; then cosine to zero over the remaining steps,
    or by the factor of the step schedule every `step_epochs` epochs, or constant.
    """
    total = optimisation.epochs * steps_per_epoch
    warmup = math.ceil(optimisation.warmup * total)
    rate = optimisation.learning_rate
    if optimisation.schedule == "step":
        rate *= optimisation.step_factor ** (step // steps_per_epoch // optimisation.step_epochs)
    if step < warmup:
        return rate * (step + 1) / warmup
    if optimisation.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
    return rate


def make_ema(net: nn.Module, optimisation: Optimisation) -> ModelEmaV3 | None:
    """EMA of all weights and buffers; None if the recipe has none.

    Its decay warms up to the recipe's as 1 - step^(-2/3), so that a short run forgets its random start.
    """
    if optimisation.ema_decay is None:
        return None
    return ModelEmaV3(net, decay=optimisation.ema_decay, use_warmup=True)
