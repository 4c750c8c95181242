"""What the images of a study are like: a few numbers a series kind, by which foreign images are noticed.

All are of the slices in the middle of the longest stack, after the grey window and at STEP_MM a pixel, so that neither
the scanner's scale nor its resolution is among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from ..dicom.geometry import body_plane
from ..dicom.study import Study, longest

STEP_MM = 2.0
# A flat image has no contrast that a texture could be a share of.
LEAST_CONTRAST = 1.0
GREYS = np.arange(256.0)


@dataclass(frozen=True)
class Feature:
    """A number of an image."""

    text: str
    least_sd: float
    """Smallest spread between studies that is believed."""


FEATURES: Mapping[str, Feature] = {
    "dark": Feature("grey that a quarter lies below", 5),
    "median": Feature("median grey", 5),
    "bright": Feature("grey that a tenth lies above", 10),
    "contrast": Feature("standard deviation of the grey", 5),
    "texture": Feature("step between neighbouring pixels, of the standard deviation", 0.02),
    "front": Feature("brightness of the front third, of the mean", 0.05),
    "back": Feature("brightness of the back third, of the mean", 0.05),
    "upper": Feature("brightness of the upper third, of the mean", 0.05),
    "lower": Feature("brightness of the lower third, of the mean", 0.05),
    "height_mm": Feature("height of the field in mm", 10),
    "width_mm": Feature("width of the field in mm", 10),
}


def image_statistics(study: Study, kind: str) -> dict[str, float]:
    """FEATURES of a study's series of a kind; empty where it has none.  An axial image has no upper or lower third.

    Of an even number of slices both middle ones count, so that a mirrored study has the same numbers.
    """
    stacks = study.of_kind(kind)
    if not stacks:
        return {}
    stack = longest(stacks)
    last = len(stack.planes) - 1
    plane = stack.planes[last // 2]
    height_mm, width_mm = (
        float(np.linalg.norm(step) * size)
        for step, size in zip((plane.row_mm, plane.column_mm), stack.pixels.shape[1:], strict=True)
    )
    size = max(3, round(width_mm / STEP_MM)), max(3, round(height_mm / STEP_MM))
    slices = stack.pixels[last // 2 : -(-last // 2) + 1]
    images = [cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in slices]  # one or two, (rows, columns)
    counts = np.bincount(np.concatenate([image.ravel() for image in images]), minlength=GREYS.size)
    dark, median, bright = np.searchsorted(counts.cumsum(), np.array([0.25, 0.5, 0.9]) * counts.sum())
    mean = float(counts @ GREYS / counts.sum())
    contrast = math.sqrt(counts @ (GREYS - mean) ** 2 / counts.sum())
    neighbours = [pair for one in images for pair in ((one[1:], one[:-1]), (one[:, 1:], one[:, :-1]))]
    steps = [cv2.mean(cv2.absdiff(*pair))[0] for pair in neighbours]
    found = {
        "dark": float(dark),
        "median": float(median),
        "bright": float(bright),
        "contrast": contrast,
        "texture": sum(steps) / len(steps) / max(contrast, LEAST_CONTRAST),
        "height_mm": height_mm,
        "width_mm": width_mm,
    }
    # Canonical stacks have rows head → feet and columns front → back (sagittal), or rows front → back (axial).
    ends = {1: ("upper", "lower"), 0: ("front", "back")} if body_plane(kind) == "sagittal" else {1: ("front", "back")}
    for axis, names in ends.items():
        profiles = [cv2.reduce(one, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel() for one in images]
        along = np.mean(profiles, axis=0)
        third = -(-len(along) // 3)
        for name, part in zip(names, (along[:third], along[-third:]), strict=True):
            found[name] = float(part.mean()) / max(mean, LEAST_CONTRAST)
    return found
