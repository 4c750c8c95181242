"""Grey values of a view → network input, by one of the normalisations."""

from __future__ import annotations

import torch

FLAT_STD = 1.0


def normalise(pixels: torch.Tensor, name: str) -> torch.Tensor:
    """Network input, float32, of (B, slice, H, W) grey values 0–255 (uint8 or floating).

    "unit": 0–1.  "zscore": each sample has mean 0 and standard deviation 1 over all its slices and pixels; a sample
    that varies by less than one grey level stays flat, as there is no signal to stretch.
    """
    values = pixels.to(torch.float32)
    if name == "unit":
        return values / 255
    if name == "zscore":
        flat = values.flatten(1)  # (B, S × H × W)
        std, mean = torch.std_mean(flat, dim=1, correction=0)
        shape = (-1, *(1,) * (values.dim() - 1))
        return (values - mean.view(shape)) / std.clamp_min(FLAT_STD).view(shape)
    raise ValueError(f"unknown normalisation '{name}'")
