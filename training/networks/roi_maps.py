"""Landmarks by a U-Net on single slices whose maps are averaged over the middle of the stack.

Source: ANGHOOO's RSNA 2024 solution (133rd place): a U-Net with a resnet18, its maps scaled to 0–1 for each
class, one point for each level of a sagittal series from the sum over the middle 3/5 of its slices, and two points,
left and right, of an axial slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.networks.parts.heatmaps import margin, points_from_maps, ramps
from training.networks.parts.segmentation import build_unet
from training.networks.parts.slices import never_empty, pick, real_slices, spread

from . import NetworkError


class RoiMaps(NamedTuple):
    """Outputs from which the loss is computed."""

    maps: Tensor
    """(B, S, K, h, w), each map scaled to 0–1."""
    used: Tensor
    """(B, S) bool: slices whose maps are used; the others are undefined."""


class Net(nn.Module):
    """Points (B, targets, 4) in pixels of the first and only view, in the middle of its slices.

    `encoder`, `decoder_channels`, `depth`, `coordinates`: as in deeplab_heatmap, with a U-Net's decoder.
    `middle_share`: share of the non-blank slices, around the middle, that is used; at least one slice.
    `window_px`: pixels farther from the peak do not move the point, and lower its confidence; by default a 16th of the
    input, twice the published spot.
    """

    losses = ("heatmap_correlation",)

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        size_px: int,
        targets: int,
        pretrained: bool = True,
        encoder: str = "resnet18",
        decoder_channels: Sequence[int] | None = None,
        depth: int = 5,
        middle_share: float = 0.6,
        window_px: float | None = None,
        coordinates: bool = False,
    ) -> None:
        super().__init__()
        if len(inputs) != 1:
            raise NetworkError(f"roi_maps takes one view, not {len(inputs)}")
        if not 0 < middle_share <= 1:
            raise NetworkError(f"middle_share is a share of the slices above 0, at most 1, not {middle_share}")
        self.size_px, self.middle_share, self.coordinates = size_px, middle_share, coordinates
        self.window_px = window_px if window_px is not None else max(2.0, size_px / 16)
        channels = 1 + 2 * coordinates
        self.network = build_unet(encoder, channels, targets, depth, decoder_channels, pretrained)

    def outputs(self, *inputs: Tensor) -> RoiMaps:
        """Maps of `view, present`."""
        view, present = inputs
        view = view * present[:, 0, None, None, None]
        used = middle_slices(real_slices(view), self.middle_share)
        shown = never_empty(used)
        images = pick(view, shown)[:, None]  # (N, 1, H, W)
        if self.coordinates:
            images = torch.cat([images, *ramps(images)], 1)
        return RoiMaps(spread(from_0_to_1(self.network(images).float()), shown), used)

    def points(self, outputs: RoiMaps, present: Tensor) -> Tensor:
        """Points (B, targets, 4).

        Confidence: margin of the mean map's peak over other peaks: high if the slices agree on one place.
        """
        maps, used = outputs
        weight = used.to(maps.dtype)
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1)
        mean = torch.einsum("bs,bskyx->bkyx", weight, maps)  # (B, K, h, w)
        middle = (weight * (torch.ones_like(weight).cumsum(1) - 1)).sum(1, keepdim=True)
        window_px = self.window_px
        found = points_from_maps(from_0_to_1(mean), present, size_px=self.size_px, slice_index=0.0, window_px=window_px)
        sure = margin(mean, found, self.size_px, window_px) * present[:, :1].float()
        return torch.stack([middle.expand_as(sure), found[..., 1], found[..., 2], sure], 2)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.points(self.outputs(*inputs), inputs[-1])


def from_0_to_1(maps: Tensor) -> Tensor:
    """Maps (..., h, w), each scaled to 0–1; zeros for constant maps."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-6)


def middle_slices(real: Tensor, share: float) -> Tensor:
    """(B, S) bool: the share of the real slices (B, S) around their middle."""
    count = real.sum(1, keepdim=True)
    from_middle = (real.cumsum(1) - 1 - (count - 1) / 2).abs()
    return real & (from_middle <= share * count / 2)
