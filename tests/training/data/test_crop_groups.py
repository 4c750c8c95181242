"""Crops on a small disk: which networks share it, and what makes room for whom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from training.data.cache.crop_cache import Cache
from training.data.cache.crop_groups import CropGroups, bytes_of, grouped
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import MemberRecipe

STUDIES = 100


@pytest.fixture(scope="module")
def members() -> tuple[MemberRecipe, ...]:
    return load_named("split_and_global", "full").members()


def test_views_that_networks_share_are_counted_once(members):
    swin, convnext = (one for one in members if "_spinal_" in one.member.name and one.member.inputs[0].size_px == 224)
    assert bytes_of([swin, convnext], STUDIES) == bytes_of([swin], STUDIES) > 0
    assert bytes_of([swin], 2 * STUDIES) == 2 * bytes_of([swin], STUDIES)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_groups_keep_the_order_and_fit_or_are_one_network(members, share):
    limit = share * bytes_of(members, STUDIES)
    groups = grouped(members, STUDIES, limit)
    assert [one for group in groups for one in group] == list(members)
    assert all(len(group) == 1 or bytes_of(group, STUDIES) <= limit for group in groups)
    assert (len(groups) == 1) == (share == 1.0)


def test_each_group_makes_room_for_the_next(members, tmp_path):
    made: list[Sequence[MemberRecipe]] = []

    def make(some: Sequence[MemberRecipe]) -> Cache:
        made.append(some)
        assert not list(tmp_path.glob("*.np[yz]")), "the crops of another group take up the disk"
        for suffix in ("npy", "npz"):
            (tmp_path / f"{len(made)}.{suffix}").write_bytes(b"crops")
        return Cache(studies=(), landmarks={"7": {"row": np.zeros(3)}}, views={})

    limit = 0.7 * bytes_of(members, STUDIES)
    groups = grouped(members, STUDIES, limit)
    (tmp_path / "landmarks.json").write_text("{}")
    with open(tmp_path / "of-an-earlier-recipe.npy", "wb") as file:
        file.truncate(int(limit))  # a file of this size that takes no room
    crops = CropGroups(members, STUDIES, tmp_path, limit, make)
    assert list(crops.landmarks) == ["7"] and made == groups[:1]
    first = [crops.of(one) for one in groups[0]]
    assert made == groups[:1] and len({id(cache) for cache in first}) == 1
    crops.of(groups[1][-1])
    crops.of(groups[0][0])
    assert made == [groups[0], groups[1], groups[0]]
    assert (tmp_path / "landmarks.json").is_file()
