"""Augmentation: points move as pixels do, the grey scale is kept, nothing happens where nothing is asked for."""

from __future__ import annotations

import pytest
import torch

from training.data.samples.augment import (
    BLUR_PX,
    grey_changes,
    inside_only,
    random_affine,
    sharpen_or_blur,
    shuffle_slices,
    uniform,
    warp,
    warp_points,
)
from training.recipe_schema.fitting import Augmentation

STRONG = Augmentation(rotate_deg=40, shear_deg=25, scale=0.3, brightness=0.4, contrast=0.6, noise=0.2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def texture(count=4, slices=3, size=40, seed=1):
    return torch.rand(count, slices, size, size, generator=generator(seed)) * 255


def dots(points, size, sigma=1.5):
    """(B, 1, size, size) a bright dot at each of (B, 2) row, column."""
    axis = torch.arange(size, dtype=torch.float32)
    profiles = torch.exp(-0.5 * ((axis - points[..., None]) / sigma) ** 2)
    return 255 * (profiles[:, 0, :, None] * profiles[:, 1, None, :])[:, None]


def centroids(images):
    """(B, 2) row, column of the middle of what is bright."""
    mass = images[:, 0]
    axis = torch.arange(mass.shape[-1], dtype=torch.float32)
    total = mass.sum((1, 2))
    return torch.stack([(mass.sum(2) * axis).sum(1) / total, (mass.sum(1) * axis).sum(1) / total], 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("from_px", "size_px"), [(96, 64), (65, 65), (64, 97)])
def test_points_move_as_pixels_do(seed, from_px, size_px):
    count = 32
    matrix = random_affine(STRONG, count, generator(seed))
    shift_px = torch.randn(count, 2, generator=generator(seed + 9)) * 4
    near = (from_px - 1) / 2 + uniform(generator(seed + 5), 2 * count, 12).view(count, 2)
    moved = centroids(warp(dots(near, from_px), matrix, shift_px, size_px))
    points = torch.cat([torch.full((count, 1), 2.0), near], 1)[:, None]
    expected = warp_points(points, matrix, shift_px, from_px, size_px)[:, 0]
    inside = expected.isfinite().all(1) & ((expected[:, 1:] > 8) & (expected[:, 1:] < size_px - 9)).all(1)
    assert inside.sum() > count / 2
    assert (moved - expected[:, 1:])[inside].abs().max() < 0.2
    assert (expected[inside, 0] == 2).all()


def test_columns_and_rows_are_not_exchanged():
    shift = torch.tensor([[5.0, 0.0]])  # to the right in the input: the image moves to the left
    image = dots(torch.tensor([[20.0, 30.0]]), 64)
    assert centroids(warp(image, torch.eye(2)[None], shift, 64))[0].tolist() == pytest.approx([20, 25], abs=1e-3)
    moved = warp_points(torch.tensor([[[0.0, 20, 30]]]), torch.eye(2)[None], shift, 64, 64)
    assert moved[0, 0].tolist() == [0, 20, 25]


def test_unknown_and_outside_points_are_nan():
    points = torch.tensor([[[0.0, 5, 5], [1, -0.4, 9.4], [1, -0.6, 3], [1, 3, 9.6], [torch.nan] * 3]])
    assert inside_only(points, 10).isfinite().all(-1)[0].tolist() == [True, True, False, False, False]
    away = torch.tensor([[0.0, 100.0]])
    assert warp_points(points, torch.eye(2)[None], away, 10, 10).isnan().all()


@pytest.mark.parametrize(("from_px", "size_px"), [(40, 40), (61, 41), (60, 40)])
def test_without_changes_the_middle_is_kept(from_px, size_px):
    pixels = texture(size=from_px)
    matrix = random_affine(Augmentation(), len(pixels), generator())
    assert torch.equal(matrix, torch.eye(2).expand(len(pixels), 2, 2))
    edge = (from_px - size_px) // 2
    middle = pixels[..., edge : edge + size_px, edge : edge + size_px]
    same = warp(pixels, matrix, torch.zeros(len(pixels), 2), size_px)
    assert (same - middle).abs().max() < 2e-3
    points = torch.rand(len(pixels), 5, 3, generator=generator()) * (size_px - 1)
    moved = warp_points(points + torch.tensor([0, edge, edge]), matrix, torch.zeros(len(pixels), 2), from_px, size_px)
    assert (moved - points).abs().max() < 1e-4


def test_zero_changes_nothing_to_the_bit():
    pixels = texture()
    assert torch.equal(grey_changes(pixels, Augmentation(), generator()), pixels)
    assert torch.equal(sharpen_or_blur(pixels, 0.0, generator()), pixels)
    assert torch.equal(shuffle_slices(pixels, 0.0, generator()), pixels)


@pytest.mark.parametrize("kind", ["grey", "sharpen or blur", "warp"])
@pytest.mark.parametrize("seed", range(3))
def test_the_grey_scale_is_kept(kind, seed):
    pixels = texture(32, 3, 24, seed)
    pixels[0], pixels[1] = 0, 255
    before = pixels.clone()
    changed = {
        "grey": lambda: grey_changes(pixels, STRONG, generator(seed)),
        "sharpen or blur": lambda: sharpen_or_blur(pixels, 1.0, generator(seed)),
        "warp": lambda: warp(pixels, random_affine(STRONG, 32, generator(seed)), torch.zeros(32, 2), 24),
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
    settings = Augmentation(rotate_deg=15, scale=0.1)
    matrix = random_affine(settings, 2000, generator())
    scale = torch.linalg.det(matrix).sqrt()
    angle = torch.rad2deg(torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    assert scale.min() >= 0.9 and scale.max() <= 1.1 and scale.std() == pytest.approx(0.2 / 12**0.5, rel=0.1)
    assert angle.abs().max() <= 15.001 and angle.std() == pytest.approx(30 / 12**0.5, rel=0.1)
    sheared = random_affine(Augmentation(shear_deg=10), 2000, generator())
    assert torch.linalg.det(sheared).sub(1).abs().max() < 1e-5
    assert torch.rad2deg(torch.atan(sheared[:, 0, 1])).abs().max() == pytest.approx(10, abs=0.1)
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
        image = warp(pixels, random_affine(STRONG, 16, rng), torch.zeros(16, 2), 40)
        return shuffle_slices(grey_changes(sharpen_or_blur(image, 0.5, rng), STRONG, rng), 0.5, rng)

    assert torch.equal(changed(seed), changed(seed)) and not torch.equal(changed(seed), changed(seed + 1))
