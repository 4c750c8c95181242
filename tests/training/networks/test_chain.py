"""Levels decoded together: against all sequences tried one by one, at most one level a disc, and doubt said as such."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from training import networks
from training.networks import NetworkError
from training.networks.parts.chain import BEND, LEAST_STEP, SHARPNESS, chained
from training.networks.parts.heatmaps import points_from_maps

SIZE, LEVELS = 64, 5
REACH = 1 / 32
Spots = dict[tuple[int, int], float]
# A spine of eight discs, bent as a lumbar one; the five levels are the third to the seventh.
DISCS = [(4, 30), (11, 28), (18, 27), (26, 27), (34, 28), (42, 31), (48, 35), (54, 40)]
TRUE = DISCS[2:7]


def maps_of(levels: list[Spots], sigma: float = 1.5) -> torch.Tensor:
    """(1, K, SIZE, SIZE) with a Gaussian of each height at each (row, column)."""
    axis = torch.arange(SIZE, dtype=torch.float32)
    maps = torch.zeros(1, len(levels), SIZE, SIZE)
    for number, spots in enumerate(levels):
        for (row, column), height in spots.items():
            spot = torch.exp(-((axis[:, None] - row) ** 2 + (axis - column) ** 2) / (2 * sigma**2))
            maps[0, number] = torch.maximum(maps[0, number], height * spot)
    return maps


def spine(right: float, above: float, below: float) -> list[Spots]:
    """The maps' spots: each level at its disc and, lower or higher, at both neighbours."""
    return [{DISCS[k + 2]: right, DISCS[k + 1]: above, DISCS[k + 3]: below} for k in range(LEVELS)]


def places(maps: torch.Tensor) -> tuple[list[tuple[int, int]], torch.Tensor]:
    index, chance = chained(maps, REACH)
    return [divmod(int(one), SIZE) for one in index[0]], chance[0]


def test_a_level_that_is_highest_at_its_neighbour_goes_by_the_others():
    levels = spine(0.8, 0.6, 0.6)
    levels[1][TRUE[2]] = 0.95  # two levels at one disc
    levels[4][DISCS[5]] = 0.9
    alone = points_from_maps(maps_of(levels), torch.ones(1, 1), size_px=SIZE, slice_index=0.0, window_px=2.0)
    assert [round(float(row)) for row in alone[0, :, 1]] == [18, 34, 34, 42, 42]
    found, chance = places(maps_of(levels))
    assert found == TRUE and chance.min() > 0.6
    together = points_from_maps(
        maps_of(levels), torch.ones(1, 1), size_px=SIZE, slice_index=0.0, window_px=2.0, chain=True
    )
    assert [(round(float(row)), round(float(column))) for row, column in together[0, :, 1:3]] == TRUE


def test_no_level_is_skipped_where_none_shows_it():
    """L3/L4 has its only peak beside the spine: the sequence keeps its even steps."""
    levels = spine(0.8, 0.3, 0.3)
    levels[2] = {TRUE[2]: 0.3, (30, 55): 0.6}
    found, chance = places(maps_of(levels))
    assert found == TRUE and chance[2] > 0.5


def test_a_spine_counted_from_either_of_two_discs_is_in_doubt():
    sure, chance = places(maps_of(spine(0.9, 0.3, 0.3)))
    assert sure == TRUE and chance.min() > 0.95
    found, doubt = places(maps_of(spine(0.8, 0.79, 0.1)))
    assert found == TRUE
    assert doubt.max() < 0.65 and doubt.min() > 0.4


def test_it_is_the_best_of_all_sequences_with_its_share_of_the_odds():
    """Brute force over a few random peaks."""
    random = torch.Generator().manual_seed(3)
    for _ in range(5):
        levels: list[Spots] = []
        for k in range(LEVELS):
            rows = 8 + 11 * k + torch.randint(-7, 8, (3,), generator=random)
            columns = torch.tensor([12, 32, 52]) + torch.randint(-5, 6, (3,), generator=random)
            heights = 0.3 + 0.7 * torch.rand(3, generator=random)
            spots = zip(rows.clamp(1, 62).tolist(), columns.tolist(), heights.tolist(), strict=True)
            levels.append({(row, column): height for row, column, height in spots})
        values = {}
        for sequence in itertools.product(*levels):
            steps = [((b[0] - a[0]) / SIZE, (b[1] - a[1]) / SIZE) for a, b in itertools.pairwise(sequence)]
            if min(step[0] for step in steps) < LEAST_STEP:
                continue
            bends = [math.dist(a, b) ** 2 / (math.hypot(*a) * math.hypot(*b)) for a, b in itertools.pairwise(steps)]
            values[sequence] = sum(levels[k][one] for k, one in enumerate(sequence)) - BEND * sum(bends)
        best = max(values, key=values.__getitem__)
        maps = maps_of(levels, sigma=0.8)
        found, chance = places(torch.where(maps > 0.01, maps, -50.0))  # no other peaks than these
        assert tuple(found) == best
        odds = {sequence: math.exp(SHARPNESS * value) for sequence, value in values.items()}
        for k in range(LEVELS):
            share = sum(one for sequence, one in odds.items() if sequence[k] == best[k]) / sum(odds.values())
            assert float(chance[k]) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("value", [0.0, -1.0, 0.5])
def test_flat_maps_are_finite_and_a_batch_is_its_samples(value):
    flat = torch.full((1, LEVELS, SIZE, SIZE), value)
    both = torch.cat([flat, maps_of(spine(0.8, 0.5, 0.6))])
    index, chance = chained(both, REACH)
    assert chance.isfinite().all() and ((chance >= 0) & (chance <= 1)).all()
    alone, its = chained(both[1:], REACH)
    assert torch.equal(index[1:], alone) and torch.allclose(chance[1:], its)


def test_a_chain_of_two_is_refused():
    with pytest.raises(NetworkError, match="chain takes 3 targets or more, from top to bottom, not 2"):
        networks.build(
            "deeplab_heatmap", inputs=(3,), size_px=32, targets=2, chain=True, pretrained=False, encoder="resnet18"
        )
