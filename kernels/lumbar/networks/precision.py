"""Tolerances against the golden output by device and precision, and when half precision may replace single."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Bounds:
    """Tolerances against the golden output of the exporting machine."""

    answer: float
    """Of logits, relative to max(1, |logit|)."""
    place: float
    """Of a localiser's slices, and of its rows and columns in px: of half of them."""
    confidence: float
    """Of half of a localiser's confidences."""


# CPUs differ in the order of additions; GPUs convolve in TensorFloat-32; half floats have 11 bits.
# The golden input is noise, on which a localiser that decodes its levels together may turn a rounding error into 0.1 of
# a confidence: of one trained on 15 patients with another number of threads.
ON_CPU, ON_GPU, IN_HALF = Bounds(1e-3, 0.05, 0.1), Bounds(5e-2, 0.25, 0.1), Bounds(1e-1, 1.0, 0.2)
# To replace single precision, half must be this close: 0.01 of a logit changes no probability by more than 0.25 %.
HALF_FOR_SINGLE = Bounds(1e-2, 0.25, 1e-2)


def bounds_of(device: torch.device, half: bool) -> Bounds:
    """What a network in this precision is allowed on a device."""
    if half:
        return IN_HALF
    return ON_GPU if device.type == "cuda" else ON_CPU
