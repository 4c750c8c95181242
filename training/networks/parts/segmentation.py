"""Encoders and U-Nets of segmentation_models_pytorch, with published weights from the hub or from a folder."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from segmentation_models_pytorch.encoders import get_encoder, get_encoder_names
from torch import Tensor, nn

from training.networks.parts.encoders import check_taken, local_state, overlay, reading, timm_offer, timm_settings
from training.networks.parts.errors import NetworkError
from training.networks.parts.published_weights import Offer, weights_of

TIMM = "tu-"
UNET_CHANNELS = (256, 128, 64, 32, 16)


def build_unet(
    encoder: str,
    channels: int,
    classes: int,
    depth: int,
    decoder_channels: Sequence[int] | None,
    pretrained: bool,
) -> Any:
    """A U-Net with an encoder of that name, optionally with published weights."""
    network: Any = unet(encoder, channels, classes, depth, decoder_channels)
    finish_encoder(network, encoder, channels, depth, 32, pretrained)
    return network


def finish_encoder(network: Any, name: str, channels: int, depth: int, stride: int, pretrained: bool) -> None:
    """Load published weights into a network of segmentation_models_pytorch if asked for; make its encoder traceable."""
    if pretrained:
        network.encoder = pretrained_encoder(name, channels, depth, stride)
    if getattr(network.encoder, "_is_transformer_style", False):
        network.encoder = FourfoldEncoder(network.encoder)


def check_encoder(name: str) -> None:
    """Raises NetworkError, with similar names, for an unknown encoder."""
    if name.startswith(TIMM):
        timm_settings(name.removeprefix(TIMM))
    elif name not in get_encoder_names():
        similar = ", ".join(difflib.get_close_matches(name, get_encoder_names(), n=5)) or "none"
        raise NetworkError(
            f"segmentation_models_pytorch has no encoder '{name}' (similar: {similar}); timm's are named {TIMM}<name>"
        )


def unet(
    encoder: str, channels: int, targets: int, depth: int, decoder_channels: int | Sequence[int] | None
) -> nn.Module:
    check_encoder(encoder)
    widths = UNET_CHANNELS[:depth] if decoder_channels is None else decoder_channels
    if isinstance(widths, int) or not 1 <= len(widths) <= depth:
        raise NetworkError(f"decoder unet takes 1 to {depth} numbers as decoder_channels, not {decoder_channels}")
    # smp requires full resolution: blocks beyond the given ones are built and dropped.
    padded = [*widths, *[widths[-1]] * (depth - len(widths))]
    network = smp.Unet(
        encoder,
        encoder_depth=depth,
        encoder_weights=None,
        in_channels=channels,
        classes=targets,
        decoder_channels=padded,
    )
    network.decoder.blocks = network.decoder.blocks[: len(widths)]
    return network


def pretrained_encoder(name: str, channels: int, depth: int, stride: int) -> nn.Module:
    """The encoder with published weights.  Raises NetworkError if they are unavailable or unreadable."""
    offer = timm_offer(name.removeprefix(TIMM)) if name.startswith(TIMM) else smp_offer(name)
    path = weights_of(offer)
    if path is None:
        return get_encoder(name, channels, depth, weights=None, output_stride=stride)
    with reading(offer, path):
        if name.startswith(TIMM):
            encoder = get_encoder(name, channels, depth, weights=True, output_stride=stride, **overlay(path))
            check_taken(encoder, path)
            return encoder
        encoder = get_encoder(name, 3, depth, weights=None)
        encoder.load_state_dict(local_state(path))
    encoder.set_in_channels(channels, pretrained=True)
    if stride != 32:
        encoder.make_dilated(stride)
    return encoder


def smp_offer(name: str) -> Offer:
    """The ImageNet weights of an encoder of segmentation_models_pytorch."""
    settings = smp_encoders[name]["pretrained_settings"].get("imagenet")
    if settings is None:
        return Offer(name)
    repository, revision = settings["repo_id"], settings["revision"]
    return Offer(name, repository.rpartition("/")[2], repository, revision, files=("model.safetensors",))


class FourfoldEncoder(nn.Module):
    """smp's wrapper of timm encoders that start at a quarter of the resolution, in a form that traces.

    smp's placeholder for the missing half resolution is created on a fixed device, which a trace would keep.
    """

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.model = wrapped.model
        self.channel_last = bool(wrapped._is_channel_last)
        self.out_channels = list(wrapped.out_channels)  # type: ignore[arg-type]
        self.output_stride = wrapped.output_stride

    def forward(self, image: Tensor) -> list[Tensor]:
        features = list(self.model(image))  # type: ignore[operator]
        if self.channel_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return [image, image[:, :0, ::2, ::2], *features]
