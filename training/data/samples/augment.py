"""Augmentation of batches of grey values 0–255, as pure functions of tensors and a generator.

All of it precedes normalisation: sharpening a standardised image and clipping it to [0, 1], as one winner's code did,
loses half of the grey scale.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from training.data.samples.batch import send
from training.recipe_schema.fitting import Augmentation

SHARPEN = torch.tensor([[-1.0, -1, -1], [-1, 9, -1], [-1, -1, -1]])
SHARPEN_STRENGTH = (0.2, 0.5)
BLUR_PX = (3, 5, 7)


def uniform(generator: torch.Generator, count: int, largest: float) -> torch.Tensor:
    """(count,) uniform in ± largest, drawn on the CPU, so that the numbers do not depend on the device."""
    return (torch.rand(count, generator=generator) * 2 - 1) * largest


def sharpen_or_blur(pixels: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Sharpen or motion-blur (with equal odds) some samples of (B, S, H, W); the range stays 0–255."""
    chosen = torch.nonzero(torch.rand(len(pixels), generator=generator) < probability).flatten()
    if not len(chosen):
        return pixels
    kernels = send(torch.stack([_kernel(generator) for _ in range(len(chosen))]), pixels.device)
    some = pixels[send(chosen, pixels.device)]
    slices, size = some.shape[1], kernels.shape[-1]
    weight = kernels[:, None].repeat_interleave(slices, 0)
    padded = F.pad(some.flatten(0, 1)[None], [size // 2] * 4, mode="replicate")  # (1, B·S, H + 6, W + 6)
    changed = F.conv2d(padded, weight, groups=len(weight))[0].view_as(some)
    result = pixels.clone()
    result[send(chosen, pixels.device)] = changed.clamp(0, 255)
    return result


def _kernel(generator: torch.Generator) -> torch.Tensor:
    """(7, 7) kernel that sums to 1."""
    largest = BLUR_PX[-1]
    kernel = torch.zeros(largest, largest)
    middle = largest // 2
    which, amount = torch.rand(2, generator=generator).tolist()
    if which < 0.5:
        strength = SHARPEN_STRENGTH[0] + amount * (SHARPEN_STRENGTH[1] - SHARPEN_STRENGTH[0])
        kernel[middle - 1 : middle + 2, middle - 1 : middle + 2] = SHARPEN * strength
        kernel[middle, middle] += 1 - strength
        return kernel
    reach = BLUR_PX[int(torch.randint(len(BLUR_PX), (1,), generator=generator))] // 2
    for step in range(-reach, reach + 1):
        row = middle + round(step * math.sin(math.pi * amount))
        column = middle + round(step * math.cos(math.pi * amount))
        kernel[row, column] += 1
    return kernel / kernel.sum()


def grey_changes(pixels: torch.Tensor, settings: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Brightness, contrast and noise by sample; the range stays 0–255."""
    if not (settings.brightness or settings.contrast or settings.noise):
        return pixels
    count = len(pixels)
    gain = send(1 + uniform(generator, count, settings.contrast), pixels.device)[:, None, None, None]
    lift = send(uniform(generator, count, settings.brightness) * 255, pixels.device)[:, None, None, None]
    mean = pixels.mean((1, 2, 3), keepdim=True)
    changed = (pixels - mean) * gain + mean + lift
    if settings.noise:
        # Drawn on the device: copying millions of numbers from the CPU is slow.
        here = torch.Generator(pixels.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
        changed += torch.randn(pixels.shape, generator=here, device=pixels.device) * (settings.noise * 255)
    return changed.clamp(0, 255)


def shuffle_slices(pixels: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Put the slices of some samples of (B, S, H, W) in random order."""
    count, slices = pixels.shape[:2]
    order = torch.rand(count, slices, generator=generator).argsort(1)
    keep = torch.rand(count, generator=generator) >= probability
    order[keep] = torch.arange(slices)
    index = send(order, pixels.device)[:, :, None, None].expand_as(pixels)
    return pixels.gather(1, index)
