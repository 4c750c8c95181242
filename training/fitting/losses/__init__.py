"""Losses by name: each file registers its own with `registry.loss`; importing this package imports them all."""

from __future__ import annotations

import importlib
import pkgutil

from training.fitting.losses.registry import LOSSES, Loss, LossSum, answer

__all__ = ["LOSSES", "Loss", "LossSum", "answer"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
