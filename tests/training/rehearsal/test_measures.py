"""What a rehearsal measures losses and memory by: best answers, and what autograd keeps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.support.networks.tiny_members import grader, localiser
from training.data.samples.batch import Batch
from training.networks.coordinates import Places
from training.recipe_schema.fitting import Fitting
from training.rehearsal.best_answers import best_loss
from training.rehearsal.memory import GIB, Estimate, Saved, sample_bytes, saved_bytes


def fitting(name: str, **options: float) -> Fitting:
    return localiser().fitting.model_copy(update={"loss": name, "loss_options": options})


def best(outputs: object, batch: Batch, fitting: Fitting) -> tuple[float, float]:
    """Floor and constant."""
    return tuple(best_loss(outputs, batch, fitting, constant=one) for one in (False, True))  # type: ignore[return-value]


def test_a_graders_floor_is_zero_and_its_constant_the_entropy_of_the_labels():
    target = torch.tensor([[0], [0], [0], [2]])
    batch = Batch((torch.zeros(4, 1, 2, 2),), torch.ones(4, 1), target)
    floor, constant = best(torch.randn(4, 1, 3), batch, grader().fitting)
    # Weights 1, 1, 1 and 4.
    expected = -(3 * math.log(3 / 7) + 4 * math.log(4 / 7)) / 7
    assert floor == pytest.approx(0, abs=1e-4) and constant == pytest.approx(expected, abs=1e-4)


def test_the_floor_of_soft_targets_is_their_entropy():
    # One slice half a step beyond the nearest: the target is a half; values of blank slices are large.
    distance = torch.tensor([[[2.25 + 4.5], [math.nan]], [[2.25 + 4.5], [math.nan]]])
    batch = Batch((torch.zeros(2, 2, 4, 4),), torch.ones(2, 1), torch.zeros(2, 1, 3), distance)
    outputs = torch.tensor([[[[3.0]], [[1000.0]]], [[[-5.0]], [[1000.0]]]])
    floor, constant = best(outputs, batch, fitting("level_classes"))
    assert floor == pytest.approx(math.log(2), abs=1e-4) and constant == pytest.approx(floor, abs=1e-4)


def test_far_distances_are_reached():
    distance = torch.tensor([[[-55.0], [50.0]], [[-45.0], [60.0]]])
    batch = Batch((torch.zeros(2, 2, 4, 4),), torch.ones(2, 1), torch.zeros(2, 1, 3), distance)
    floor, constant = best(torch.zeros(2, 2, 1, 2), batch, fitting("level_distance", shows=0))
    assert floor == pytest.approx(0, abs=1e-4) and constant == pytest.approx(0.125, abs=1e-3)


def test_a_constant_map_is_the_same_everywhere():
    batch = Batch((torch.zeros(2, 1, 32, 32),), torch.ones(2, 1), torch.full((2, 1, 3), 16.0))
    floor, constant = best(torch.rand(2, 1, 32, 32), batch, fitting("heatmap_mse"))
    assert floor == pytest.approx(0, abs=1e-6) and constant > 0.01


def test_attention_stays_a_distribution():
    points = torch.tensor([[[1.0, 16.0, 16.0]]])
    batch = Batch((torch.zeros(1, 3, 32, 32),), torch.ones(1, 1), points)
    grid = torch.zeros(1, 1, 16, 16).flatten(2).log_softmax(2).unflatten(2, (16, 16))
    outputs = Places(torch.zeros(1, 1, 2), torch.zeros(1, 1), grid)
    floor, _ = best(outputs, batch, fitting("coordinate_smooth_l1", attention=1.0, confidence=0.0))
    # The entropy of a gaussian with a sigma of one cell along each of two axes.
    assert floor == pytest.approx(math.log(2 * math.pi * math.e), abs=0.02)


def test_what_autograd_keeps_is_counted_once_and_without_the_weights():
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    images = torch.randn(5, 8)
    with saved_bytes(net) as saved:
        net(images).sum().backward()
    # The input, and the output of ReLU, which two operations keep.
    assert saved.bytes == 4 * 5 * (8 + 16)


@pytest.mark.parametrize(
    ("precision", "is_mixed", "expected"), [("float32", False, 100), ("float16", False, 50), ("bfloat16", True, 80)]
)
def test_what_is_kept_of_a_sample_is_told_in_the_precision_of_the_training(precision, is_mixed, expected):
    # In mixed precision without the half copies of ten weights.
    assert sample_bytes(Saved({1: 60, 2: 40}), 1, 10, precision, is_mixed=is_mixed) == expected
    assert sample_bytes(Saved({1: 60, 2: 40}), 2, 10, precision, is_mixed=is_mixed) == expected / 2


def test_a_batch_is_split_until_it_fits():
    estimate = Estimate(parameters=GIB // 18, sample_bytes=GIB / 2, precision="float16")
    assert estimate.gib(8, 1) == pytest.approx(1 + 4, abs=1e-6)
    assert estimate.gib(8, 3) == pytest.approx(1 + 1.5, abs=1e-6)
    assert [estimate.accumulate_for(8, 8, 1, gb) for gb in (5, 3, 1.6, 1)] == [1, 2, 8, 8]
    assert estimate.accumulate_for(8, 8, 4, 5) == 4
    single = Estimate(parameters=GIB // 16, sample_bytes=GIB, precision="float32")
    assert single.gib(8, 1) == pytest.approx(1 + 8, abs=1e-6)
