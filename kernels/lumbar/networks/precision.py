"""Tolerances against the golden output by device and precision, and when half precision may replace single."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Bounds:
    """Tolerances against the golden output of the exporting machine."""

    answer: float
    """Of logits, relative to max(1, |logit|), and of a localiser's confidences."""
    place: float
    """Of a localiser's slices, and of its rows and columns in px."""


# CPUs differ in the order of additions; GPUs convolve in TensorFloat-32; half floats have 11 bits.
ON_CPU, ON_GPU, IN_HALF = Bounds(1e-3, 0.05), Bounds(5e-2, 0.25), Bounds(1e-1, 1.0)
# To replace single precision, half must be this close: 0.01 of a logit changes no probability by more than 0.25 %.
HALF_FOR_SINGLE = Bounds(1e-2, 0.25)


def bounds_of(device: torch.device, half: bool) -> Bounds:
    """What a network in this precision is allowed on a device."""
    if half:
        return IN_HALF
    return ON_GPU if device.type == "cuda" else ON_CPU
