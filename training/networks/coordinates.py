"""Landmarks as numbers: slices as channels of a 2D encoder, then row, column and, if asked, slice of each point.

Sources: the 2D keypoint models of seed 001 (10 sampled slices as channels, global average pooling, Smooth-L1 of
normalised coordinates) and the coordinate regressors of seed 000.  The head `soft_argmax` is DSNT (Nibali et al. 2018):
the mean place under an attention map a point, which knows places from the start and learns them from few studies, above
all where the loss tells the map itself where to look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.networks.parts.encoders import image_encoder
from training.networks.parts.heatmaps import ramps
from training.networks.parts.slices import real_slices

from . import NetworkError

Pooling = Literal["average", "soft_argmax"]


class Places(NamedTuple):
    """What networks of coordinates say, in float32."""

    place: Tensor
    """(B, K, 2 or 3): row and column, or slice, row and column, from 0 to 1 between the edges of the first view."""
    logit: Tensor
    """(B, K) of the confidence."""
    attention: Tensor
    """(B, K, *grid) logarithms of shares that sum to 1: where the network looks for each point."""


class Net(nn.Module):
    """Points (B, targets, 4) in pixels of the first view.

    `encoder`: a timm name.  `pooling`: average = of the whole image, the published head; soft_argmax = see PointHead,
    over maps of one pixel in `stride` input pixels with `width` channels, to which all coarser ones are added, and of
    which the cells within `window` of the highest count (null: all).
    `slices`: regress the slice, too; else points lie in the middle of the first view's slices.  `coordinates`: two more
    channels say where each pixel lies (CoordConv, Liu et al. 2018).
    """

    losses = ("coordinate_smooth_l1",)

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
        super().__init__()
        self.slices = inputs[0]
        self.size_px = size_px
        self.regress_slices = slices
        self.coordinates = coordinates
        channels = sum(inputs) + 2 * coordinates
        self.encoder = image_encoder(encoder, channels, pretrained, features_only=pooling != "average")
        if pooling == "average":
            self.pyramid, width = None, self.encoder.num_features
        else:
            self.pyramid = Pyramid(
                self.encoder.feature_info.channels(), self.encoder.feature_info.reduction(), stride, width, axes=2
            )
        self.head = PointHead(width, targets, 2 + slices, pooling, dropout, window)

    def outputs(self, *inputs: Tensor) -> Places:
        """Places for `*views, present`."""
        *views, present = inputs
        shown = [view * present[:, number, None, None, None] for number, view in enumerate(views)]
        image = torch.cat(shown, 1)
        if self.coordinates:
            image = torch.cat([image, *ramps(image)], 1)
        features = self.encoder(image)
        said: Places = self.head(features if self.pyramid is None else self.pyramid(features))
        return on_real_slices(said, shown[0]) if self.regress_slices else said

    def points(self, said: Places, present: Tensor) -> Tensor:
        """Points (B, targets, 4) of places."""
        return points_from_places(said, present, slices=self.slices, size_px=self.size_px)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.points(self.outputs(*inputs), inputs[-1])


class PointHead(nn.Module):
    """Features (B, C, *grid) → Places.

    A point lies at the mean of the grid's cells under its attention, plus a linear function of the features under the
    same attention, which gives the logit of its confidence as well.  `average`: the attention is even, so that this is
    global average pooling and a linear layer; `soft_argmax`: it is learned.  `axes`: row and column, or with the slice;
    an axis that the grid lacks starts in its middle.  `window`: only cells this near to the highest one count, along
    each axis, so that of two likely discs the point lies on one, not between them; how much of the attention they hold
    is then the logit's beginning.
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
        flat = features.flatten(2)
        if self.attention is None:
            logits = flat.new_zeros(flat.shape[0], self.targets, flat.shape[2])
        else:
            logits = self.attention(flat)
        attention = logits.float().log_softmax(2)
        share, centres = attention.exp(), self._cells(features)
        if self.window is not None:
            share, mass = self._near_peak(share, centres, features.shape[2:])
        # type_as, as a trace would remember a dtype, and fail once the weights are half floats.
        attended = torch.einsum("bkn,bcn->bkc", share.type_as(flat), flat)
        answer = (torch.einsum("bkc,kco->bko", self.dropout(attended), self.weight) + self.bias).float()
        # Not as a matrix product, which autocast would round to half floats, a quarter of a pixel in 512.
        mean = torch.stack([(share * along).sum(2) for along in centres], 2)
        logit = answer[..., -1]
        if self.window is not None:
            logit = logit + mass.clamp(1e-4, 1 - 1e-4).logit()
        return Places(mean + answer[..., :-1], logit, attention.unflatten(2, features.shape[2:]))

    def _near_peak(self, share: Tensor, centres: list[Tensor], grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(B, K, cells) shares of the cells near the highest one, made to sum to 1, and what they summed to (B, K)."""
        assert self.window is not None
        peak = share.argmax(2)
        near = torch.ones_like(share)
        for along, cells in zip(centres[-len(grid) :], grid, strict=True):
            near = near * ((along - along[peak][..., None]).abs() * cells <= self.window + 0.01).to(share.dtype)
        kept = share * near
        mass = kept.sum(2)
        return kept / mass[..., None], mass

    def _cells(self, features: Tensor) -> list[Tensor]:
        """For each axis of places the (cells,) float32 centres of the grid's cells."""
        one = torch.ones_like(features[0, 0], dtype=torch.float32)
        # Running sums instead of torch.arange, which a trace would tie to the exporting machine's device.
        centres = [((one.cumsum(axis) - 0.5) / one.shape[axis]).flatten() for axis in range(one.dim())]
        return [torch.full_like(centres[0], 0.5)] * (self.axes - len(centres)) + centres


class Pyramid(nn.Module):
    """Feature maps, fine to coarse, → one (B, width, *grid) at the finest grid of at least `stride` (Lin et al. 2017).

    All coarser maps and the mean of the coarsest are added to it: place from the fine, level from the coarse.
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


def on_real_slices(said: Places, view: Tensor) -> Places:
    """The same with no place beyond the last slice of (B, S, H, W) that is not blank.

    The gradient passes as if nothing had been moved, so that a place that was moved still learns.
    """
    real = real_slices(view).float().sum(1).clamp_min(1)
    last = ((real - 0.5) / view.shape[1])[:, None]
    index = said.place[..., 0]
    index = index + (torch.minimum(index, last) - index).detach()
    return said._replace(place=torch.cat([index[..., None], said.place[..., 1:]], 2))


def points_from_places(said: Places, present: Tensor, *, slices: int, size_px: int) -> Tensor:
    """(B, K, 4) float32 slice, row, column in input pixels, inside the image, and confidence.

    Without a slice among the places, it is the middle one.  The confidence is 0 where the first view is missing.
    """
    place = said.place.clamp(0, 1)
    row_column = place[..., -2:] * size_px - 0.5
    if place.shape[-1] == 3:
        index = (place[..., :1] * slices - 0.5).clamp(0, slices - 1)
    else:
        index = torch.full_like(place[..., :1], (slices - 1) / 2)
    confidence = said.logit.sigmoid() * present[:, :1].float()
    return torch.cat([index, row_column, confidence[..., None]], 2)
