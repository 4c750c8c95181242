"""One grey window for a whole stack: 16-bit values → uint8."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.lib.stride_tricks import as_strided

WINDOW_PERCENTILES = (0.5, 99.5)
# OpenCV counts in float32, which is exact up to this number.
LARGEST_COUNT = 1 << 24


def grey_window(slices: Sequence[np.ndarray]) -> tuple[int, int]:
    """Lower and upper percentile of all (H, W) uint16 slices together; minimum and maximum where these coincide.

    Equal to np.percentile with the methods "lower" and "higher", at a twentieth of its cost.
    """
    blocks = _blocks(slices)
    bins = max(int(block.max()) for block in blocks) + 1
    counts = np.zeros(bins, np.int64)
    for block in blocks:
        histogram = cv2.calcHist([block], [0], None, [bins], [0, bins])
        counts += histogram.ravel().astype(np.int64)
    cumulative = counts.cumsum()
    last = int(cumulative[-1]) - 1
    ranks = math.floor(WINDOW_PERCENTILES[0] / 100 * last), math.ceil(WINDOW_PERCENTILES[1] / 100 * last)
    low, high = (int(np.searchsorted(cumulative, rank, side="right")) for rank in ranks)
    if low == high:
        present = np.flatnonzero(counts)
        low, high = int(present[0]), int(present[-1])
    return low, high


def _blocks(slices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The pixels of all (H, W) slices as few arrays: slices that lie one behind the other in memory become one.

    Reading leaves them so, and a histogram costs as much to begin as a whole slice to count.
    """
    height, width = slices[0].shape
    blocks: list[tuple[np.ndarray, int]] = []  # the first slice of each block, and the number of slices
    end = None
    for words in sorted(map(np.ascontiguousarray, slices), key=_address):
        first, count = blocks[-1] if blocks else (words, 0)
        follows = _address(words) == end and words.base is not None and words.base is first.base
        if follows and (count + 1) * words.size <= LARGEST_COUNT:
            blocks[-1] = first, count + 1
        else:
            blocks.append((words, 1))
        end = _address(words) + words.nbytes
    return [as_strided(first, (count * height, width), writeable=False) for first, count in blocks]


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def to_uint8(slices: Sequence[np.ndarray], window: tuple[int, int]) -> np.ndarray:
    """(slice, H, W) uint8 of uint16 slices: 0 at the window's low value, 255 at its high one; zeros if flat."""
    low, high = window
    scaled = np.empty((len(slices), *slices[0].shape), np.uint8)
    alpha = 255 / (high - low) if high > low else 0.0
    floor, risen = np.full(slices[0].shape, low, np.uint16), np.empty(slices[0].shape, np.uint16)
    for words, out in zip(slices, scaled, strict=True):
        cv2.subtract(words, floor, dst=risen)  # saturating: below the window is 0
        cv2.convertScaleAbs(risen, dst=out, alpha=alpha)
    return scaled
