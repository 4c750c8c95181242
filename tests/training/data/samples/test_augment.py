"""Augmentation: the grey scale is kept, nothing happens where nothing is asked for."""

from __future__ import annotations

import pytest
import torch

from training.data.samples.augment import (
    BLUR_PX,
    grey_changes,
    sharpen_or_blur,
    shuffle_slices,
)
from training.recipe_schema.fitting import Augmentation

STRONG = Augmentation(rotate_deg=40, shear_deg=25, scale=0.3, brightness=0.4, contrast=0.6, noise=0.2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def texture(count=4, slices=3, size=40, seed=1):
    return torch.rand(count, slices, size, size, generator=generator(seed)) * 255


def test_zero_changes_nothing_to_the_bit():
    pixels = texture()
    assert torch.equal(grey_changes(pixels, Augmentation(), generator()), pixels)
    assert torch.equal(sharpen_or_blur(pixels, 0.0, generator()), pixels)
    assert torch.equal(shuffle_slices(pixels, 0.0, generator()), pixels)


@pytest.mark.parametrize("kind", ["grey", "sharpen or blur"])
@pytest.mark.parametrize("seed", range(3))
def test_the_grey_scale_is_kept(kind, seed):
    pixels = texture(32, 3, 24, seed)
    pixels[0], pixels[1] = 0, 255
    before = pixels.clone()
    changed = {
        "grey": lambda: grey_changes(pixels, STRONG, generator(seed)),
        "sharpen or blur": lambda: sharpen_or_blur(pixels, 1.0, generator(seed)),
    }[kind]()
    assert torch.equal(pixels, before)  # pure
    assert changed.shape == pixels.shape and changed.isfinite().all()
    assert changed.min() >= 0 and changed.max() <= 255.001
    assert changed.max() > 200 and changed[2:].std() > 20  # not clipped to a part of it


def test_flat_images_stay_as_they_are_up_to_their_edges():
    pixels = torch.full((64, 2, 16, 16), 100.0)
    assert sharpen_or_blur(pixels, 1.0, generator()).sub(100).abs().max() < 1e-3


def test_some_are_sharpened_and_some_blurred():
    pixels = texture(400, 1, 16)
    changed = sharpen_or_blur(pixels, 0.5, generator())

    def roughness(images):
        return (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3)) + images.diff(dim=2).abs().mean((1, 2, 3))

    touched = (changed != pixels).flatten(1).any(1)
    smoother = roughness(changed) < roughness(pixels)
    assert 150 < touched.sum() < 250
    assert 0.3 < smoother[touched].float().mean() < 0.7
    # A motion blur is as long as it says: a dot spreads over 3, 5 or 7 pixels.
    dot = torch.zeros(300, 1, 15, 15)
    dot[:, :, 7, 7] = 255
    blurred = sharpen_or_blur(dot, 1.0, generator())
    lengths = {int((image > 0).sum()) for image in blurred if image.max() < 100}
    assert lengths == set(BLUR_PX)


def test_slices_are_shuffled_whole_and_each_sample_by_itself():
    pixels = torch.arange(5.0)[None, :, None, None].expand(200, 5, 2, 2).contiguous()
    order = shuffle_slices(pixels, 1.0, generator())
    assert torch.equal(order.sort(1).values, pixels)
    assert (order == order[:, :, :1, :1]).all()
    assert len({tuple(one[:, 0, 0].tolist()) for one in order}) > 50
    moved = (shuffle_slices(pixels, 0.5, generator()) != pixels).flatten(1).any(1)
    assert 70 < moved.sum() < 130


def test_changes_are_of_the_size_asked_for():
    pixels = torch.full((2000, 1, 4, 4), 127.5)
    lifted = grey_changes(pixels, Augmentation(brightness=0.2), generator())[:, 0, 0, 0] - 127.5
    assert lifted.abs().max() == pytest.approx(0.2 * 255, rel=0.01)
    noisy = grey_changes(pixels, Augmentation(noise=0.05), generator()) - 127.5
    assert noisy.std() == pytest.approx(0.05 * 255, rel=0.02)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_generator_decides_alone(seed):
    pixels = texture(16)

    def changed(number):
        torch.manual_seed(torch.randint(100, ()))
        rng = generator(number)
        image = sharpen_or_blur(pixels, 0.5, rng)
        return shuffle_slices(grey_changes(image, STRONG, rng), 0.5, rng)

    assert torch.equal(changed(seed), changed(seed)) and not torch.equal(changed(seed), changed(seed + 1))
