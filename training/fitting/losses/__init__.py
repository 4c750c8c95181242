"""Losses by name: each file registers its own with `registry.loss`; importing this package imports them all."""

from __future__ import annotations

import importlib
import pkgutil

from training.fitting.losses.auxiliary_losses import answer, loss_of
from training.fitting.losses.registry import LOSSES, Loss, LossSum

__all__ = ["LOSSES", "Loss", "LossSum", "answer", "loss_of"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
