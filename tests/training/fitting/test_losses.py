"""Losses and targets against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from tests.support.networks.tiny_members import grader, localiser
from training import networks
from training.data.samples.batch import Batch
from training.fitting.losses import LossSum, answer
from training.fitting.losses.grade_losses import weighted_cross_entropy
from training.fitting.losses.map_losses import heatmap_mse
from training.fitting.losses.target_heatmaps import gaussian_heatmaps, known_points

NAN = float("nan")


def test_heatmap_has_height_one_at_the_point_and_the_right_width():
    points = torch.tensor([[[1.0, 10.0, 20.0], [1.0, NAN, NAN]]])
    maps = gaussian_heatmaps(points, size_px=32, map_px=32, sigma_px=4.0)
    assert maps.shape == (1, 2, 32, 32) and maps.dtype == torch.float32
    assert maps[0, 0, 10, 20] == 1
    assert maps[0, 0, 14, 20].item() == pytest.approx(math.exp(-0.5))
    assert maps[0, 0, 14, 17].item() == pytest.approx(math.exp(-0.5 * (1 + 9 / 16)))
    assert (maps[0, 1] == 0).all()
    assert known_points(points).tolist() == [[True, False]]


def test_heatmap_of_another_resolution_covers_the_same_field():
    # Input row 9.5 is the border between map rows 4 and 5, input column 4.5 the middle of map column 2.
    maps = gaussian_heatmaps(torch.tensor([[[0.0, 9.5, 4.5]]]), size_px=32, map_px=16, sigma_px=4.0)
    assert maps[0, 0, 4:6, 2].tolist() == pytest.approx([math.exp(-0.5 * (0.5 / 2) ** 2)] * 2)
    assert maps[0, 0].max() == maps[0, 0, 4:6, 2].max()


def test_heatmap_mse_counts_known_points_only():
    points = torch.tensor([[[0.0, 3.0, 3.0], [0.0, NAN, 2.0]], [[0.0, 5.0, 1.0], [0.0, 2.0, 2.0]]])
    target = gaussian_heatmaps(points, size_px=8, map_px=8, sigma_px=2.0)
    maps = torch.zeros(2, 2, 8, 8, requires_grad=True)
    loss = heatmap_mse(maps, points, size_px=8, sigma_px=2.0)
    known = [target[0, 0], target[1, 0], target[1, 1]]
    expected = sum((one**2).mean().item() for one in known) / 3
    assert loss.weight == 3 and loss.mean.item() == pytest.approx(expected)
    loss.mean.backward()
    assert (maps.grad[0, 1] == 0).all() and maps.grad[0, 0].abs().sum() > 0
    assert heatmap_mse(target, points, size_px=8, sigma_px=2.0).mean == 0
    hidden = torch.tensor([[True, True], [False, False]])
    assert heatmap_mse(maps, points, size_px=8, sigma_px=2.0, known=hidden).weight == 1


def test_foreground_weights_pixels_by_their_target():
    points = torch.tensor([[[0.0, 3.0, 3.0]]])
    target = gaussian_heatmaps(points, size_px=8, map_px=8, sigma_px=1.0)
    maps = torch.zeros(1, 1, 8, 8)
    expected = ((1 + 5 * target) * target**2).mean().item()
    assert heatmap_mse(maps, points, size_px=8, sigma_px=1.0, foreground=5).mean.item() == pytest.approx(expected)


def test_weighted_cross_entropy_by_hand():
    logits = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]], [[2.0, 0.0, 0.0], [9.0, 9.0, 9.0]]])
    severities = torch.tensor([[0, 2], [1, -100]])
    norm = math.log(math.e + math.e**2 + math.e**3)
    losses = [math.log(3), norm - 3, math.log(math.e**2 + 2)]
    expected = (1 * losses[0] + 4 * losses[1] + 2 * losses[2]) / 7
    loss = weighted_cross_entropy(logits, severities)
    assert loss.weight == 7 and loss.mean.item() == pytest.approx(expected, rel=1e-6)
    torch_says = functional.cross_entropy(
        logits.flatten(0, 1), severities.flatten(), torch.tensor([1.0, 2.0, 4.0]), ignore_index=-100
    )
    torch.testing.assert_close(loss.mean, torch_says)


def test_half_floats_are_summed_in_float32():
    logits = torch.full((4096, 1, 3), 3.0, dtype=torch.float16)
    assert weighted_cross_entropy(logits, torch.zeros(4096, 1, dtype=torch.long)).mean.item() == pytest.approx(
        math.log(3)
    )


@pytest.mark.parametrize("name", ["heatmap_mse", "weighted_cross_entropy"])
def test_a_batch_without_labels_has_zero_loss_with_a_gradient(name):
    recipe = localiser() if name == "heatmap_mse" else grader()
    net = networks.for_member(recipe)
    views = tuple(torch.randn(2, 3, 32, 32) for _ in recipe.member.inputs)
    nothing = torch.full((2, 2, 3), NAN) if name == "heatmap_mse" else torch.full((2, 1), -100)
    loss = answer(net, Batch(views, torch.ones(2, len(views)), nothing), recipe.fitting)[0]
    assert loss.mean == 0 and loss.weight == 0
    loss.mean.backward()
    assert all(value.grad.isfinite().all() for value in net.parameters() if value.grad is not None)
    assert any(value.grad is not None for value in net.parameters())


def test_localisers_do_not_learn_from_missing_views():
    recipe = localiser()
    net = networks.for_member(recipe)
    batch = Batch((torch.zeros(2, 3, 32, 32),), torch.tensor([[1.0], [0.0]]), torch.full((2, 2, 3), 5.0))
    assert answer(net, batch, recipe.fitting)[0].weight == 2


def test_means_over_batches_are_exact():
    sums = [LossSum(torch.tensor(6.0), torch.tensor(4.0)), LossSum(torch.tensor(1.0), torch.tensor(1.0))]
    assert sum(s.total for s in sums) / sum(s.weight for s in sums) == pytest.approx(1.4)
