"""Which slice of a volume shows each landmark, and about where: a 3D ConvNeXt, the slice localiser of the 1st place.

Source: the 1st place: stacks padded to 32 slices, a cross entropy over the slices, and L1 of the normalised slice, row
and column.  Other localisers find the point in the slices that it chooses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.networks.parts.slices import real_slices
from training.networks.parts.volume_convnext import CONVNEXTS, VolumeConvNeXt

from . import NetworkError
from .coordinates import Places, Pooling, points_from_places
from .volume_coordinates import VolumeNet, inflated

# Logit of a blank slice; finite, as half floats have to hold it.
BLANK_LOGIT = -1e4


class SlicesAndPlaces(NamedTuple):
    """Outputs, float32."""

    slices: Tensor
    """(B, S, K) logits that a slice shows a landmark best; BLANK_LOGIT of blank slices."""
    place: Tensor
    """(B, K, 3): slice, row and column from 0 to 1 between the edges of the view."""


class Net(VolumeNet):
    """Points (B, targets, 4) in pixels of the first view; all views have its slices, and become channels of the volume.

    `encoder`: a name of volume_convnext.CONVNEXTS; `pretrained`: inflate timm's weights of that name.  The slice is the
    one with the highest logit, row and column are the regressed ones; the confidence is the probability of that slice
    and its neighbours.  A slice's logit is the log-sum-exp of a map over it, as the landmark is small.
    `pooling`, `stride`, `width`, `dropout`, `window`, `coordinates`: as in coordinates.Net, for row and column.
    """

    losses = ("slice_and_place",)

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        size_px: int,
        targets: int,
        encoder: str = "convnext_tiny",
        pretrained: bool = True,
        pooling: Pooling = "average",
        stride: int = 8,
        width: int = 128,
        dropout: float = 0.0,
        window: float | None = None,
        coordinates: bool = False,
    ) -> None:
        super().__init__(inputs, size_px, coordinates)
        if encoder not in CONVNEXTS:
            raise NetworkError(f"there is no 3D encoder '{encoder}'; there are: {', '.join(CONVNEXTS)}")
        self.encoder = VolumeConvNeXt(encoder, len(inputs) + 3 * coordinates)
        if pretrained:
            self.encoder.load_state_dict(inflated(encoder, self.encoder.state_dict()))
        width = self.add_head(targets, self.encoder.reductions, pooling, stride, width, dropout, window)
        self.maps = nn.Conv1d(width, targets, 1)

    def outputs(self, *inputs: Tensor) -> SlicesAndPlaces:  # type: ignore[override]
        """Slices and places for `*views, present`."""
        features, first = self.features(*inputs)  # (B, C, S, h, w)
        maps = self.maps(features.flatten(2)).float().unflatten(2, features.shape[2:])  # (B, K, S, h, w)
        logits = maps.flatten(3).logsumexp(3).transpose(1, 2)  # (B, S, K)
        logits = logits.masked_fill(~real_slices(first)[..., None], BLANK_LOGIT)
        return SlicesAndPlaces(logits, self.head(features).place)

    def points(self, outputs: SlicesAndPlaces, present: Tensor) -> Tensor:  # type: ignore[override]
        """Points (B, targets, 4)."""
        share = outputs.slices.float().softmax(1)  # (B, S, K)
        index = share.argmax(1)  # (B, K)
        beside = torch.nn.functional.pad(share, (0, 0, 1, 1))
        around = beside[:, :-2] + share + beside[:, 2:]
        sure = around.gather(1, index[:, None])[:, 0].clamp(1e-4, 1 - 1e-4)
        places = Places(outputs.place, sure.logit(), share)
        points = points_from_places(places, present, slices=self.slices, size_px=self.size_px)
        return torch.cat([index[..., None].type_as(points), points[..., 1:]], 2)
