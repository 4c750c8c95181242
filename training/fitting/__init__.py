"""From a member's samples to its weights: losses, targets, the loop, checkpoints, curves and the exported artefact."""

from __future__ import annotations

from training.networks.parts import torchvision_shim

torchvision_shim.apply()  # before any module of this package imports timm


class FitError(Exception):
    """A run that cannot start or continue, with the reason."""
