"""Gamma and brightness fields: off where nothing is asked for, smooth, the same for all slices, black stays black."""

from __future__ import annotations

import torch

from training.data.samples.shading import shaded
from training.recipe_schema.fitting import Augmentation
from training.recipe_schema.load import load_named

BOTH = Augmentation(gamma=1.0, bias_field=0.8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texture(count: int = 6, slices: int = 3, size: int = 40) -> torch.Tensor:
    return torch.rand(count, slices, size, size, generator=generator(1)) * 255


def test_nothing_is_drawn_or_changed_without_it() -> None:
    pixels, random = texture(), generator()
    before = random.get_state()
    assert shaded(pixels, Augmentation(), random) is pixels and torch.equal(random.get_state(), before)


def test_the_grey_scale_and_black_are_kept() -> None:
    pixels = texture()
    pixels[0], pixels[1, :, :10] = 0, 0
    before = pixels.clone()
    changed = shaded(pixels, BOTH, generator())
    assert torch.equal(pixels, before) and changed.isfinite().all()
    assert changed.min() >= 0 and changed.max() <= 255.01
    assert not changed[0].any() and not changed[1, :, :10].any()
    assert torch.equal(changed, shaded(pixels, BOTH, generator())), "the same draws give the same"
    assert (changed[2:] - pixels[2:]).abs().mean() > 5


def test_a_gamma_keeps_the_order_of_grey_values() -> None:
    ramp = torch.arange(256.0).reshape(1, 1, 16, 16).repeat(8, 2, 1, 1)
    changed = shaded(ramp, Augmentation(gamma=1.5), generator())
    assert (changed.flatten(2).diff(dim=2) > 0).all() and torch.equal(changed[:, 0], changed[:, 1])
    middle = changed[:, 0].flatten(1)[:, 128]
    assert middle.min() < 110 and middle.max() > 150, "darker and brighter ones"


def test_a_field_is_smooth_and_that_of_the_whole_sample() -> None:
    flat = torch.full((32, 3, 64, 64), 100.0)
    changed = shaded(flat, Augmentation(bias_field=0.8), generator())
    assert torch.equal(changed[:, 0], changed[:, 2])
    steps = changed.log().diff(dim=3).abs().amax((1, 2, 3))
    spread = changed.log().amax((1, 2, 3)) - changed.log().amin((1, 2, 3))
    assert (steps < spread / 8).all() and spread.median() > 0.8
    assert len(torch.unique(changed[:, 0, 20, 30])) == len(flat)


def test_sagittal_localisers_that_start_from_phantoms_ask_for_it() -> None:
    members = [*load_named("canal_only", "bench").members(), *load_named("split_and_global", "smoke").members()]
    asked = {one.member.name: one.fitting.augmentation for one in members}
    shaded_ones = {name for name, one in asked.items() if one.gamma > 0 and one.bias_field > 0}
    sagittal = {name for name in asked if name.startswith(("canal_only", "split_and_global_sagittal"))}
    assert shaded_ones == sagittal
    published = [one.fitting.augmentation for one in load_named("split_and_global", "full").members()]
    assert not any(one.gamma or one.bias_field for one in published)
