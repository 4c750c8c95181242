"""Heatmaps → points, in operations whose trace works on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from training.networks.parts.chain import chained

# Half the peak is the disc of radius 1.18 sigma of a gaussian.  With less, distant pixels would bias the point.
SHARE_OF_PEAK = 0.5


def points_from_maps(
    maps: Tensor, present: Tensor, *, size_px: int, slice_index: float, window_px: float, chain: bool = False
) -> Tensor:
    """(B, K, h, w) maps whose ideal peak is 1 → (B, K, 4) float32 slice, row, column in input pixels, and confidence.

    Row and column: the centroid of the values above half the peak, within `window_px` input pixels of it, so with
    sub-pixel precision.  Confidence: the height of the peak, clamped to [0, 1], as a network trained by mean squared
    error lowers the peak where it is uncertain; 0 if the first view is missing.  `chain`: the landmarks follow one
    another from top to bottom, and are decoded together (see `chained`), whose probability multiplies the confidence.
    """
    maps = maps.float()  # half floats cannot count beyond 2048
    height, width = maps.shape[-2], maps.shape[-1]
    # Cumulative sums instead of torch.arange, whose device would be fixed by the trace.
    rows = torch.ones_like(maps[:1, :1, :, :1]).cumsum(2) - 1
    columns = torch.ones_like(maps[:1, :1, :1, :]).cumsum(3) - 1
    flat = maps.flatten(2)
    peak, index = flat.max(2)  # (B, K)
    chance = torch.ones_like(peak)
    if chain:
        index, chance = chained(maps, window_px / size_px)
        peak = flat.gather(2, index[..., None])[..., 0]
    peak_row = torch.div(index, width, rounding_mode="floor")
    peak_column = index - peak_row * width
    from_row = (rows - peak_row[..., None, None]).abs()
    from_column = (columns - peak_column[..., None, None]).abs()
    scale = size_px / height
    near = (torch.maximum(from_row, from_column) * scale <= window_px).to(maps.dtype)
    threshold = peak - SHARE_OF_PEAK * peak.abs()
    weight = (maps - threshold[..., None, None]).clamp_min(0) * near  # (B, K, h, w)
    # A map without a positive peak yields its highest pixel.
    weight = weight + 1e-6 * (from_row + from_column == 0).to(maps.dtype)
    total = weight.sum((2, 3))
    row = ((weight * rows).sum((2, 3)) / total + 0.5) * scale - 0.5
    column = ((weight * columns).sum((2, 3)) / total + 0.5) * scale - 0.5
    confidence = peak.clamp(0, 1) * chance * present[:, :1].to(maps.dtype)
    return torch.stack([torch.full_like(row, slice_index), row, column, confidence], 2)


def margin(maps: Tensor, found: Tensor, size_px: int, window_px: float) -> Tensor:
    """(B, K) peak of maps (B, K, h, w) minus the maximum farther than window_px from the points (B, K, 4)."""
    scale = maps.shape[-1] / size_px
    rows = torch.ones_like(maps[:1, :1, :, :1]).cumsum(2) - 0.5
    columns = torch.ones_like(maps[:1, :1, :1, :]).cumsum(3) - 0.5
    from_row = (rows - (found[..., 1, None, None] + 0.5) * scale).abs()
    from_column = (columns - (found[..., 2, None, None] + 0.5) * scale).abs()
    beyond = torch.maximum(from_row, from_column) > window_px * scale
    return (maps.amax((2, 3)) - (maps * beyond).amax((2, 3))).clamp(0, 1)


def ramps(image: Tensor) -> list[Tensor]:
    """For each axis of the grid of (B, C, *grid) one (B, 1, *grid): the position along it, from -1 to 1."""
    one = torch.ones_like(image[:, :1])
    return [(one.cumsum(axis) - 0.5) * (2 / image.shape[axis]) - 1 for axis in range(2, image.dim())]
