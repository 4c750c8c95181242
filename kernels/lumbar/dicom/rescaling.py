"""One grey scale for a stack: rescale slopes and intercepts are checked against each other, then applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..problems import Report
from .images import Image

# Values of a slice reach so many times as far as those of its series, or less far, only by a wrong slope.
LARGEST_SHARE = 20.0
LEAST_TO_COMPARE = 3


def one_scale(images: Sequence[Image], slices: Sequence[np.ndarray], report: Report) -> list[np.ndarray]:
    """(H, W) uint16 slices of images on one increasing linear scale of the true values.

    Files with equal slope and intercept need no arithmetic, as the grey window cancels these.
    """
    scales = {image.scale for image in images}
    if len(scales) > 1:
        images = _checked(images, report)
        scales = {image.scale for image in images}
    rising = images[0].scale[0] > 0
    if len(scales) == 1 and rising and all(words.flags.c_contiguous for words in slices):
        return list(slices)
    volume = np.stack(slices)  # (S, H, W)
    if len(scales) == 1:
        return list(volume if rising else np.invert(volume, out=volume))
    values = volume.astype(np.float32)
    for words, image in zip(values, images, strict=True):
        slope, intercept = image.scale
        words *= slope
        words += intercept
    low, high = float(values.min()), float(values.max())
    values -= low
    values *= 65535 / (high - low or 1.0)
    return list(np.rint(values, out=values).astype(np.uint16))


def _checked(images: Sequence[Image], report: Report) -> Sequence[Image]:
    """The images with the rescale of the others where theirs is unusable, or contradicts all others."""
    usable = sorted(image.rescale for image in images if image.rescale is not None)
    if not usable:
        return images
    typical = usable[len(usable) // 2]
    images = [image if image.rescale is not None else replace(image, rescale=typical) for image in images]
    if len(images) < LEAST_TO_COMPARE:
        return images
    ranges = np.array([_range(image) for image in images])  # (S, 2)
    low, high = np.median(ranges, axis=0)
    checked = []
    for image, own in zip(images, ranges, strict=True):
        other = replace(image, rescale=typical)
        is_wrong = image.rescale != typical and not _fits(own, low, high) and _fits(_range(other), low, high)
        if is_wrong and image.rescale is not None:
            own_text, typical_text = (f"slope {one[0]:g}, intercept {one[1]:g}" for one in (image.rescale, typical))
            report.add("bad-rescale", f"{own_text} contradict the other files: {typical_text}", image.file)
        checked.append(other if is_wrong else image)
    return checked


def _range(image: Image) -> tuple[float, float]:
    """The lowest and the highest value of an image."""
    slope, intercept = image.scale
    ends = sorted(slope * float(word) + intercept for word in (image.words.min(), image.words.max()))
    return ends[0], ends[1]


def _fits(its: Sequence[float], low: float, high: float) -> bool:
    """Whether values reach into those of the series and about as far."""
    share = (its[1] - its[0]) / (high - low) if high > low else 1.0
    return 1 / LARGEST_SHARE < share < LARGEST_SHARE and its[1] > low and its[0] < high
