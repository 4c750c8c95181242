"""Augmentation as scanners differ: a gamma of the grey scale, and a smooth brightness field of receive coils."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from training.data.samples.augment import uniform
from training.data.samples.batch import send
from training.recipe_schema.fitting import Augmentation

# The field is drawn at so many points along each side and interpolated: half a period is no shorter than a third of it.
POINTS = 4


def shaded(pixels: torch.Tensor, settings: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """(B, S, H, W) of 0–255 with a gamma and a brightness field a sample, the same for all its slices.

    Black stays black.  After the field the brightest pixel of a sample is what it was, as the grey window of the
    kernel would make it.
    """
    if settings.gamma:
        exponent = send(torch.exp2(uniform(generator, len(pixels), settings.gamma)), pixels.device)
        pixels = 255 * (pixels / 255).clamp(0, 1) ** exponent[:, None, None, None]
    if settings.bias_field:
        before = pixels.amax((1, 2, 3), keepdim=True)
        pixels = pixels * send(_fields(len(pixels), pixels.shape[-2:], settings.bias_field, generator), pixels.device)
        pixels = pixels * (before / pixels.amax((1, 2, 3), keepdim=True).clamp_min(1e-6))
    return pixels


def _fields(count: int, size: torch.Size, deviation: float, generator: torch.Generator) -> torch.Tensor:
    """(count, 1, H, W) positive factors, whose logarithm has this standard deviation at the points drawn."""
    drawn = torch.randn(count, 1, POINTS, POINTS, generator=generator) * deviation
    return F.interpolate(drawn, size=tuple(size), mode="bicubic", align_corners=True).exp()
