"""Target heatmaps of landmarks."""

from __future__ import annotations

import torch
from torch import Tensor


def known_points(points: Tensor) -> Tensor:
    """(B, K) bool: the landmarks whose row and column are known, for points (B, K, 3) = slice, row, column."""
    return points[..., 1:3].isfinite().all(-1)


def gaussian_heatmaps(points: Tensor, *, size_px: int, map_px: int, sigma_px: float) -> Tensor:
    """(B, K, map_px, map_px) float32 gaussians of height 1 around points (B, K, 3) = slice, row, column.

    Points and sigma are in pixels of an input of size_px; the map covers the same field with map_px pixels.  A point
    between two pixels, or outside of the image, keeps its exact place.  Maps of unknown points are zero.
    """
    scale = map_px / size_px
    known = known_points(points)
    centres = torch.where(known[..., None], points[..., 1:3], 0.0).float()
    centres = (centres + 0.5) * scale - 0.5
    axis = torch.arange(map_px, device=points.device, dtype=torch.float32)
    profiles = torch.exp(-0.5 * ((axis - centres[..., None]) / (sigma_px * scale)) ** 2)  # (B, K, 2, map_px)
    maps = profiles[:, :, 0, :, None] * profiles[:, :, 1, None, :]
    return maps * known[..., None, None]
