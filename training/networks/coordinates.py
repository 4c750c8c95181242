"""Coordinate regression: slices as channels of a 2D encoder, then row, column and optionally slice of each point.

Sources: the 2D keypoint models of the 7th place (10 sampled slices as channels, global average pooling, Smooth-L1 of
normalised coordinates) and the coordinate regressors of the 2nd place.  The head `soft_argmax` is DSNT (Nibali et
al. 2018): the mean place under an attention map for each point, which learns from few studies, above all if the loss
supervises the map as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.networks.parts.encoders import image_encoder
from training.networks.parts.heatmaps import ramps
from training.networks.parts.slices import real_slices

from . import NetworkError

Pooling = Literal["average", "soft_argmax"]


class Places(NamedTuple):
    """Outputs of coordinate networks, float32."""

    place: Tensor
    """(B, K, 2 or 3): row and column, or slice, row and column, from 0 to 1 between the edges of the first view."""
    logit: Tensor
    """(B, K) logit of the confidence."""
    attention: Tensor
    """(B, K, *grid) log-softmax attention of each point."""


class CoordinateNet(nn.Module):
    """Encoder → (Pyramid) → PointHead: `outputs`, `points` and `forward` of localisers that regress coordinates."""

    losses = ("coordinate_smooth_l1",)

    def __init__(self, slices: int, size_px: int, *, volume: bool, coordinates: bool) -> None:
        super().__init__()
        self.slices, self.size_px, self.volume, self.coordinates = slices, size_px, volume, coordinates
        self.encoder: Any
        self.pyramid: nn.Module | None
        self.head: PointHead

    def outputs(self, *inputs: Tensor) -> Places:
        """Places for `*views, present`."""
        features, first = self.features(*inputs)
        places: Places = self.head(features)
        return on_real_slices(places, first) if self.head.axes == 3 else places

    def features(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, *grid) for `*views, present`, and the first view, blank where it is missing."""
        *views, present = inputs
        shown = [view * present[:, number, None, None, None] for number, view in enumerate(views)]
        image = torch.stack(shown, 1) if self.volume else torch.cat(shown, 1)  # (B, views, S, H, W) or (B, C, H, W)
        if self.coordinates:
            image = torch.cat([image, *ramps(image)], 1)
        features = self.encoder(image)
        if self.pyramid is not None:
            features = self.pyramid(features)
        elif self.volume:
            features = features[-1]
        return features, shown[0]

    def points(self, places: Places, present: Tensor) -> Tensor:
        """Points (B, targets, 4) of places."""
        return points_from_places(places, present, slices=self.slices, size_px=self.size_px)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.points(self.outputs(*inputs), inputs[-1])


class Net(CoordinateNet):
    """Points (B, targets, 4) in pixels of the first view.

    `encoder`: a timm name.  `pooling`: average = of the whole image, the published head; soft_argmax = see PointHead,
    over maps at `stride` with `width` channels, to which all coarser ones are added, restricted to the cells within
    `window` of the peak (null: all).
    `slices`: also regress the slice; else points lie in the middle of the first view's slices.  `coordinates`: two more
    channels with each pixel's position (CoordConv, Liu et al. 2018).
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        size_px: int,
        targets: int,
        encoder: str = "densenet161",
        pretrained: bool = True,
        pooling: Pooling = "average",
        stride: int = 8,
        width: int = 128,
        slices: bool = False,
        dropout: float = 0.0,
        window: float | None = None,
        coordinates: bool = False,
    ) -> None:
        super().__init__(inputs[0], size_px, volume=False, coordinates=coordinates)
        channels = sum(inputs) + 2 * coordinates
        self.encoder = image_encoder(encoder, channels, pretrained, features_only=pooling != "average")
        if pooling == "average":
            self.pyramid, width = None, self.encoder.num_features
        else:
            self.pyramid = Pyramid(
                self.encoder.feature_info.channels(), self.encoder.feature_info.reduction(), stride, width, axes=2
            )
        self.head = PointHead(width, targets, 2 + slices, pooling, dropout, window)


class PointHead(nn.Module):
    """Features (B, C, *grid) → Places.

    A point is the attention-weighted mean of the cells' centres plus a linear function of the attention-weighted
    features, which also gives the logit of the confidence.  `average`: uniform attention, which is global average
    pooling and a linear layer; `soft_argmax`: learned attention.  `axes`: 2 = row, column; 3 = slice, row, column; an
    axis that the grid lacks starts in its middle.  `window`: only cells this near to the peak along each axis count, so
    that of two likely discs the point lies on one, not between them; their share of attention is added to the logit.
    """

    def __init__(
        self, channels: int, targets: int, axes: int, pooling: Pooling, dropout: float, window: float | None = None
    ) -> None:
        super().__init__()
        if pooling not in ("average", "soft_argmax"):
            raise NetworkError(f"pooling is 'average' or 'soft_argmax', not '{pooling}'")
        self.targets, self.axes, self.window = targets, axes, window
        self.attention = nn.Conv1d(channels, targets, 1) if pooling == "soft_argmax" else None
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.randn(targets, channels, axes + 1) * 0.01)
        self.bias = nn.Parameter(torch.zeros(targets, axes + 1))

    def forward(self, features: Tensor) -> Places:
        if features.dim() == 2:
            features = features[..., None, None]  # pooled by the encoder itself
        flat = features.flatten(2)  # (B, C, N)
        if self.attention is None:
            logits = flat.new_zeros(flat.shape[0], self.targets, flat.shape[2])
        else:
            logits = self.attention(flat)
        attention = logits.float().log_softmax(2)  # (B, K, N)
        share, centres = attention.exp(), self._cells(features)
        if self.window is not None:
            share, mass = self._near_peak(share, centres, features.shape[2:])
        # type_as, as a trace would remember a dtype, and fail once the weights are half floats.
        attended = torch.einsum("bkn,bcn->bkc", share.type_as(flat), flat)  # (B, K, C)
        answer = (torch.einsum("bkc,kco->bko", self.dropout(attended), self.weight) + self.bias).float()
        # Not as a matrix product, which autocast would round to half floats, a quarter of a pixel in 512.
        mean = torch.stack([(share * along).sum(2) for along in centres], 2)  # (B, K, axes)
        logit = answer[..., -1]
        if self.window is not None:
            logit = logit + mass.clamp(1e-4, 1 - 1e-4).logit()
        return Places(mean + answer[..., :-1], logit, attention.unflatten(2, features.shape[2:]))

    def _near_peak(self, share: Tensor, centres: list[Tensor], grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(B, K, N) shares of the cells near the peak, normalised, and their sum before that (B, K)."""
        assert self.window is not None
        peak = share.argmax(2)
        near = torch.ones_like(share)
        for along, cells in zip(centres[-len(grid) :], grid, strict=True):
            near = near * ((along - along[peak][..., None]).abs() * cells <= self.window + 0.01).to(share.dtype)
        kept = share * near
        mass = kept.sum(2)
        return kept / mass[..., None], mass

    def _cells(self, features: Tensor) -> list[Tensor]:
        """For each axis the (N,) float32 centres of the grid's cells, from 0 to 1."""
        one = torch.ones_like(features[0, 0], dtype=torch.float32)
        # Running sums instead of torch.arange, which a trace would tie to the exporting machine's device.
        centres = [((one.cumsum(axis) - 0.5) / one.shape[axis]).flatten() for axis in range(one.dim())]
        return [torch.full_like(centres[0], 0.5)] * (self.axes - len(centres)) + centres


class Pyramid(nn.Module):
    """Feature maps, fine to coarse, → one (B, width, *grid) at the finest grid of at least `stride` (Lin et al. 2017).

    All coarser maps and the mean of the coarsest are added: position from fine maps, level from coarse ones.
    """

    def __init__(
        self, channels: Sequence[int], reductions: Sequence[int], stride: int, width: int, *, axes: int
    ) -> None:
        super().__init__()
        self.first = next((number for number, one in enumerate(reductions) if one >= stride), len(channels) - 1)
        convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.mode = "bilinear" if axes == 2 else "trilinear"
        self.channels = list(channels[self.first :])
        self.narrow = nn.ModuleList(convolution(count, width, 1, bias=False) for count in self.channels)
        self.context = convolution(self.channels[-1], width, 1, bias=False)
        self.mix = nn.Sequential(
            norm(width), nn.ReLU(), convolution(width, width, 3, padding=1, bias=False), norm(width), nn.ReLU()
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        used = features[self.first :]
        used = [
            map_ if map_.shape[1] == count else map_.permute(0, 3, 1, 2)
            for map_, count in zip(used, self.channels, strict=True)
        ]
        grid = used[0].shape[2:]
        total = self.narrow[0](used[0])
        for narrow, coarse in zip(self.narrow[1:], used[1:], strict=True):
            total = total + functional.interpolate(narrow(coarse), size=grid, mode=self.mode, align_corners=False)
        total = total + self.context(used[-1].mean(tuple(range(2, used[-1].dim())), keepdim=True))
        mixed: Tensor = self.mix(total)
        return mixed


def on_real_slices(places: Places, view: Tensor) -> Places:
    """Places clipped to the last slice of (B, S, H, W) that is not blank, with a straight-through gradient."""
    real = real_slices(view).float().sum(1).clamp_min(1)
    last = ((real - 0.5) / view.shape[1])[:, None]  # (B, 1)
    index = places.place[..., 0]
    index = index + (torch.minimum(index, last) - index).detach()
    return places._replace(place=torch.cat([index[..., None], places.place[..., 1:]], 2))


def points_from_places(places: Places, present: Tensor, *, slices: int, size_px: int) -> Tensor:
    """(B, K, 4) float32 slice, row, column in input pixels, inside the image, and confidence.

    The slice is the middle one if places have none; the confidence is 0 if the first view is missing.
    """
    place = places.place.clamp(0, 1)
    row_column = place[..., -2:] * size_px - 0.5
    if place.shape[-1] == 3:
        index = (place[..., :1] * slices - 0.5).clamp(0, slices - 1)
    else:
        index = torch.full_like(place[..., :1], (slices - 1) / 2)
    confidence = places.logit.sigmoid() * present[:, :1].float()
    return torch.cat([index, row_column, confidence[..., None]], 2)
