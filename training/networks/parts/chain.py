"""Heatmaps of landmarks that follow one another down the spine, decoded together.

The map of one level often has a peak at each disc, and the highest is at times that of a neighbour.  So the peaks of
all maps are weighed together, as in pictorial structures (Felzenszwalb & Huttenlocher 2005): of all sequences with one
peak a map, each below the one before, that with the largest sum of heights less what its steps differ by.  Two levels
are never at one disc, and a level that is unsure goes by the others.  Exact, by dynamic programming over pairs of
neighbours; in operations whose trace works on every device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# Highest peaks of each map that are considered: a level, its neighbours and something else.
CANDIDATES = 6
# No step leads down by less than this share of the image: half the least distance of two discs.
LEAST_STEP = 1 / 24
# Two steps in a row cost this × |difference|² / (length × length): 0.35 where one is twice the other.
BEND = 0.7
# Sequences whose sums of heights differ by 1 have odds of e to this.
SHARPNESS = 5.0
FORBIDDEN = 100.0


def chained(maps: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """(B, K) flat index of the peak chosen in each of K ≥ 3 maps (B, K, h, w), and its probability by this model.

    Maps are in the order of the landmarks from top to bottom, with an ideal peak of 1.  `reach`: smallest distance of
    two peaks of a map along an axis, as a share of its height.  The probability is that of all sequences through the
    peak, so it is low where the whole spine may as well be counted from another disc.
    """
    height, order = _peaks(maps, max(1, round(reach * int(maps.shape[-2]))))  # (B, K, M) each
    place = _places(order, maps)  # (B, K, M, 2)
    count = int(maps.shape[1])
    steps = [place[:, k + 1, None, :] - place[:, k, :, None] for k in range(count - 1)]  # (B, M, M, 2): from, to
    pairs = [height[:, k + 1, None] - FORBIDDEN * (step[..., 0] < LEAST_STEP) for k, step in enumerate(steps)]
    pairs[0] = pairs[0] + height[:, 0, :, None]
    turns = [-BEND * _bend(*two) for two in zip(steps, steps[1:], strict=False)]  # (B, M, M, M)
    best = _marginals(pairs, turns, torch.amax)
    chosen = best.argmax(2, keepdim=True)  # (B, K, 1)
    odds = _marginals([SHARPNESS * one for one in pairs], [SHARPNESS * one for one in turns], torch.logsumexp)
    return order.gather(2, chosen)[..., 0], odds.softmax(2).gather(2, chosen)[..., 0]


def _peaks(maps: Tensor, reach_px: int) -> tuple[Tensor, Tensor]:
    """(B, K, M) heights and flat indices of the highest local maxima of maps (B, K, h, w)."""
    size = 2 * reach_px + 1
    around = functional.max_pool2d(maps, (size, 1), stride=1, padding=(reach_px, 0))
    around = functional.max_pool2d(around, (1, size), stride=1, padding=(0, reach_px))
    height, order = (maps - FORBIDDEN * (maps < around)).flatten(2).topk(CANDIDATES, 2)
    return height, order


def _places(order: Tensor, maps: Tensor) -> Tensor:
    """(..., 2) row and column of flat indices, as shares of the sides of the maps."""
    height, width = maps.shape[-2], maps.shape[-1]
    row = torch.div(order, width, rounding_mode="floor")
    return torch.stack([row / height, (order - row * width) / width], -1)


def _bend(first: Tensor, second: Tensor) -> Tensor:
    """(B, M, M, M) of steps (B, M, M, 2) to and from the same candidates: 0 where the second goes on as the first."""
    one, other = first[:, :, :, None], second[:, None]
    lengths = one.square().sum(-1).sqrt() * other.square().sum(-1).sqrt()
    return (other - one).square().sum(-1) / lengths.clamp_min(1e-4)


def _marginals(pairs: list[Tensor], turns: list[Tensor], combined: Callable[..., Tensor]) -> Tensor:
    """(B, K, M): for each candidate, all sequences through it, combined by their maximum or the log of their sum.

    `pairs`: (B, M, M) value of two neighbours and the step between them.  `turns`: (B, M, M, M) of two steps in a row.
    """
    before = [pairs[0]]
    for turn, pair in zip(turns, pairs[1:], strict=True):
        before.append(combined(before[-1][..., None] + turn, 1) + pair)
    after = [torch.zeros_like(pairs[-1])]
    for turn, pair in zip(reversed(turns), reversed(pairs[1:]), strict=True):
        after.insert(0, combined(turn + (pair + after[0])[:, None], 3))
    whole = [one + other for one, other in zip(before, after, strict=True)]
    return torch.stack([combined(whole[0], 2), *(combined(one, 1) for one in whole)], 1)
