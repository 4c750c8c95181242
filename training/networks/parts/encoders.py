"""Image encoders: any timm model, from scratch or from published weights (published_weights.py)."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import nn

from training.networks.parts.errors import NetworkError
from training.networks.parts.published_weights import PRETRAINED_VARIABLE, Offer, weights_of

# Part of torch's message for weights that do not fit.
FOREIGN = "loading state_dict"


@contextmanager
def reading(offer: Offer, path: Path) -> Iterator[None]:
    """Raises NetworkError for a damaged file, or one with the weights of another network."""
    try:
        yield
    except (OSError, EOFError, LookupError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        why = "they are another network's" if FOREIGN in str(error) else "the file is damaged"
        raise NetworkError(
            f"{path} does not hold the weights of '{offer.name}' ({why}): remove {path.resolve()}, and fetch it again "
            "with python -m training.networks.fetch_pretrained --recipes <names> --out DIR, for "
            f"{PRETRAINED_VARIABLE}=DIR"
        ) from error


def local_state(path: Path) -> dict[str, Any]:
    """The tensors of a weights file, on the CPU."""
    state: dict[str, Any] = load_state_dict(str(path), use_ema=False, device="cpu")
    return state


def check_taken(net: nn.Module, path: Path) -> None:
    """Raises RuntimeError if most of a timm model's matrices are not in this file, as timm accepts foreign weights.

    A few always differ: the first one (other channels), and position embeddings (another size).
    """
    state = [tensor for tensor in local_state(path).values() if isinstance(tensor, torch.Tensor)]
    offered = {(tensor.numel(), tensor.double().sum().item()) for tensor in state}
    matrices = [tensor for tensor in net.parameters() if tensor.dim() > 1]
    taken = sum((tensor.numel(), tensor.detach().double().sum().item()) in offered for tensor in matrices)
    if taken < len(matrices) / 2:
        raise RuntimeError(f"{FOREIGN}: {taken} of {len(matrices)} matrices are the file's")


def timm_settings(name: str) -> Any:
    """timm's pretrained configuration of a model.  Raises NetworkError, with similar names, for an unknown one."""
    if not timm.is_model(name):
        similar = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise NetworkError(f"timm has no model '{name}'; similar names: {', '.join(similar) or 'none'}")
    return timm.get_pretrained_cfg(name)


def timm_offer(name: str) -> Offer:
    """timm's published weights of a model.  Raises NetworkError for an unknown one."""
    settings = timm_settings(name)
    if settings is None:
        return Offer(name)
    repository, _, revision = (settings.hf_hub_id or "").partition("@")
    return Offer(
        name,
        also=f"{settings.architecture}.{settings.tag}" if settings.tag else "",
        repository=repository,
        revision=revision or None,
        url=settings.url or "",
        licence=settings.license or "not stated",
        **({"files": (settings.hf_hub_filename,)} if settings.hf_hub_filename else {}),
    )


def overlay(path: Path) -> dict[str, Any]:
    """Arguments with which timm reads its weights from a file."""
    return {"pretrained_cfg_overlay": {"file": str(path)}}


def slice_encoder(name: str, *, size_px: int, pretrained: bool, channels: int = 1, **options: Any) -> nn.Module:
    """A timm model that turns images (B, channels, size_px, size_px) into features (B, num_features).

    Backbones with position embeddings are built for size_px.  `options` go to timm.create_model.
    """
    settings = timm_settings(name)
    if settings is not None and settings.fixed_input_size:
        options = {"img_size": size_px, **options}
    encoder: nn.Module = image_encoder(name, channels, pretrained, **options)
    return encoder


def image_encoder(name: str, channels: int, pretrained: bool, **options: Any) -> Any:
    """A timm model for images with that many channels, without its classifier.

    Raises NetworkError for an unknown name, and for published weights that are unavailable or unreadable.
    """
    offer = timm_offer(name)
    if not options.get("features_only"):
        options["num_classes"] = 0
    path = weights_of(offer) if pretrained else None
    if path is None:
        return timm.create_model(name, pretrained=False, in_chans=channels, **options)
    with reading(offer, path):
        encoder = timm.create_model(name, pretrained=True, in_chans=channels, **overlay(path), **options)
        check_taken(encoder, path)
    return encoder
