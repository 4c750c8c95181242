"""Image encoders: any timm model, from scratch, from the model hub, or from a folder of weights.

The folder is named by the environment variable PRETRAINED_DIR and holds `<name>.safetensors` (or .pth, .pt, .bin), with
the name that the recipe uses, with or without timm's tag: resnet18.safetensors or resnet18.a1_in1k.safetensors.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import timm
from timm.models import load_state_dict
from torch import nn

from . import NetworkError

PRETRAINED_VARIABLE = "PRETRAINED_DIR"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


class PretrainedError(NetworkError):
    """Published weights that are neither in the folder nor to be downloaded."""

    def __init__(self, name: str, reason: Exception) -> None:
        folder = os.environ.get(PRETRAINED_VARIABLE)
        where = (
            f"not in {PRETRAINED_VARIABLE}={folder}" if folder else f"in no folder ({PRETRAINED_VARIABLE} is not set)"
        )
        first_line = (str(reason).splitlines() or [""])[0]
        super().__init__(
            f"pretrained weights of '{name}' are {where}, nor can they be downloaded "
            f"({type(reason).__name__}: {first_line}): put {name}.safetensors into a folder named by "
            f"{PRETRAINED_VARIABLE}, or set pretrained: false"
        )


def local_weights(*names: str) -> Path | None:
    """The file of the first of these names that the folder of pretrained weights holds."""
    folder = os.environ.get(PRETRAINED_VARIABLE)
    candidates = [Path(folder) / f"{name}{suffix}" for name in names for suffix in _SUFFIXES] if folder else []
    return next((path for path in candidates if path.is_file()), None)


def local_state(path: Path) -> dict[str, Any]:
    """The tensors of a weights file, on the CPU."""
    state: dict[str, Any] = load_state_dict(str(path), use_ema=False, device="cpu")
    return state


def timm_settings(name: str) -> Any:
    """timm's own description of a model.  Raises NetworkError, with similar names, where there is none of this name."""
    if not timm.is_model(name):
        similar = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise NetworkError(f"timm has no model '{name}'; similar names: {', '.join(similar) or 'none'}")
    return timm.get_pretrained_cfg(name)


def overlay(name: str) -> dict[str, Any]:
    """Arguments that make timm read its weights from the folder, where it holds them."""
    settings = timm_settings(name)
    tagged = f"{settings.architecture}.{settings.tag}" if settings is not None and settings.tag else name
    path = local_weights(name, tagged)
    return {} if path is None else {"pretrained_cfg_overlay": {"file": str(path)}}


def slice_encoder(name: str, *, size_px: int, pretrained: bool, channels: int = 1, **options: Any) -> nn.Module:
    """A timm model that turns images (B, channels, size_px, size_px) into features (B, num_features).

    Backbones whose position tables fix the input size are built for size_px.  `options` go to timm.create_model.
    Raises as image_encoder does.
    """
    settings = timm_settings(name)
    if settings is not None and settings.fixed_input_size:
        options = {"img_size": size_px, **options}
    encoder: nn.Module = image_encoder(name, channels, pretrained, **options)
    return encoder


def image_encoder(name: str, channels: int, pretrained: bool, **options: Any) -> Any:
    """A timm model of images with that many channels, without its classifier.

    Raises NetworkError for an unknown name, PretrainedError where published weights are wanted and cannot be had.
    """
    timm_settings(name)
    if pretrained:
        options = {**overlay(name), **options}
    if not options.get("features_only"):
        options["num_classes"] = 0
    try:
        return timm.create_model(name, pretrained=pretrained, in_chans=channels, **options)
    except OSError as error:  # what the hub's client raises without a network, and a reader for a missing file
        raise PretrainedError(name, error) from error
