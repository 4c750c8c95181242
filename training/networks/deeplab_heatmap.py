"""Heatmap regression by a network of segmentation_models_pytorch, slices as channels.

Source: adamnarai's RSNA 2024 write-up and code (9th place): DeepLabV3+ with a resnet34, gaussian heatmaps, mean squared
error.  For training from scratch a U-Net decoder is better, as it has full resolution.  With a feature pyramid (FPN,
Lin et al. 2017) it is the detector of the 3rd place, a CenterNet (Zhou et al. 2019) of one object a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.networks.parts.heatmaps import points_from_maps, ramps
from training.networks.parts.segmentation import check_encoder, finish_encoder, unet

from . import NetworkError

LEAST_CHAIN = 3


class Net(nn.Module):
    """Points (B, targets, 4) in pixels of the first view, in the middle of its slices.

    `encoder`: a name of segmentation_models_pytorch, or "tu-" and a timm name.  `depth`: how often it halves the image.
    `decoder_channels`: deeplab, fpn: one number (256); unet: one number for each doubling, coarse to fine; fewer than
    `depth` end below full resolution.  `upsample`: interpolate the maps to the input's resolution; where false, maps,
    targets and loss stay at the decoder's (deeplab, fpn: a quarter).  `window_px`: see points_from_maps; by default a
    32nd of the input.  `coordinates`: two more channels with each pixel's position (CoordConv, Liu et al. 2018), which
    distinguishes neighbouring levels sooner when training from scratch.  `chain`: the targets, three or more, are
    levels from top to bottom, and their maps are decoded together (training/networks/parts/chain.py).
    """

    losses = ("heatmap_mse",)

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        size_px: int,
        targets: int,
        encoder: str = "resnet34",
        pretrained: bool = True,
        decoder: Literal["deeplab", "unet", "fpn"] = "deeplab",
        decoder_channels: int | Sequence[int] | None = None,
        depth: int = 5,
        dropout: float = 0.5,
        upsample: bool = True,
        window_px: float | None = None,
        coordinates: bool = False,
        chain: bool = False,
    ) -> None:
        super().__init__()
        if chain and targets < LEAST_CHAIN:
            raise NetworkError(f"chain takes {LEAST_CHAIN} targets or more, from top to bottom, not {targets}")
        self.chain = chain
        self.size_px = size_px
        self.slice_index = (inputs[0] - 1) / 2
        self.upsample = upsample
        self.window_px = window_px if window_px is not None else max(2.0, size_px / 32)
        self.coordinates = coordinates
        channels = sum(inputs) + 2 * coordinates
        if decoder == "deeplab":
            check_encoder(encoder)
            width = _one_number(decoder, decoder_channels)
            self.network = smp.DeepLabV3Plus(
                encoder,
                encoder_depth=depth,
                encoder_weights=None,
                in_channels=channels,
                classes=targets,
                decoder_channels=width,
                decoder_aspp_dropout=dropout,
                upsampling=1,
            )
        elif decoder == "fpn":
            check_encoder(encoder)
            width = _one_number(decoder, decoder_channels)
            if width % 64:
                raise NetworkError(f"decoder fpn takes a multiple of 64 as decoder_channels, not {width}")
            if size_px < 2 << depth:  # its group normalisation needs several pixels
                raise NetworkError(f"decoder fpn takes images of at least {2 << depth} px, not {size_px}")
            self.network = smp.FPN(
                encoder,
                encoder_depth=depth,
                encoder_weights=None,
                in_channels=channels,
                classes=targets,
                decoder_pyramid_channels=width,
                decoder_segmentation_channels=width // 2,
                decoder_dropout=dropout,
                upsampling=1,
            )
        elif decoder == "unet":
            self.network = unet(encoder, channels, targets, depth, decoder_channels)
        else:
            raise NetworkError(f"decoder is 'deeplab', 'unet' or 'fpn', not '{decoder}'")
        finish_encoder(self.network, encoder, channels, depth, 16 if decoder == "deeplab" else 32, pretrained)

    def outputs(self, *inputs: Tensor) -> Tensor:
        """Heatmaps (B, targets, h, w) for `*views, present`; the target of a known landmark has a peak of 1."""
        *views, present = inputs
        shown = [view * present[:, number, None, None, None] for number, view in enumerate(views)]
        if self.coordinates:
            shown += ramps(shown[0])
        maps: Tensor = self.network(torch.cat(shown, 1))  # (B, C, H, W) → (B, K, h, w)
        if self.upsample and maps.shape[-1] != self.size_px:
            size = (self.size_px, self.size_px)
            maps = functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        return maps

    def points(self, maps: Tensor, present: Tensor) -> Tensor:
        """Points (B, targets, 4) of maps."""
        return points_from_maps(
            maps,
            present,
            size_px=self.size_px,
            slice_index=self.slice_index,
            window_px=self.window_px,
            chain=self.chain,
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.points(self.outputs(*inputs), inputs[-1])


def _one_number(decoder: str, decoder_channels: int | Sequence[int] | None) -> int:
    """The width of a decoder that has one, 256 by default.  Raises NetworkError for several."""
    width = 256 if decoder_channels is None else decoder_channels
    if not isinstance(width, int):
        raise NetworkError(f"decoder {decoder} takes one number as decoder_channels, not {decoder_channels}")
    return width
