"""Losses of graders: the metric itself as a loss, unweighted groups, slices that show the target, blended batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from kernels.lumbar.labels import GROUPS, ROWS, group_of
from tests.support.networks.tiny_members import grader
from training.data.samples.batch import Batch, Origin
from training.data.soft_labels import target_masses
from training.evaluation.metric import pooled
from training.fitting.losses import LOSSES
from training.fitting.losses.grade_losses import (
    competition,
    cross_entropy,
    valid_slices_bce,
    weighted_bce,
    weighted_cross_entropy,
)

GROUP_OF_ROW = torch.tensor([GROUPS.index(group_of(row)) for row in ROWS])
NAN = torch.nan


def random_study(count: int, seed: int, missing: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 25, 3, generator=generator)
    shares = torch.tensor([0.6, 0.3, 0.1])
    severities = torch.multinomial(shares, count * 25, True, generator=generator).reshape(count, 25)
    hidden = torch.rand(count, 25, generator=generator) < missing
    return logits, severities.masked_fill(hidden, -100)


@pytest.mark.parametrize("seed", range(5))
def test_the_competitions_loss_is_the_metric(seed):
    logits, severities = random_study(12, seed)
    loss = competition(logits, severities, GROUP_OF_ROW, torch.arange(12))
    expected = pooled(severities.numpy(), logits.double().softmax(2).numpy())
    assert loss.mean.item() == pytest.approx(expected.final, abs=1e-5)


def test_levels_as_samples_of_their_own_make_the_same_any_severe_loss():
    logits, severities = random_study(6, 9, missing=0)
    canal = [place for place, row in enumerate(ROWS) if group_of(row) == "spinal"]
    together = competition(logits[:, canal], severities[:, canal], GROUP_OF_ROW[canal], torch.arange(6))
    apart = competition(
        logits[:, canal].reshape(30, 1, 3),
        severities[:, canal].reshape(30, 1),
        GROUP_OF_ROW[canal[:1]],
        torch.arange(6).repeat_interleave(5),
    )
    assert apart.mean.item() == pytest.approx(together.mean.item(), rel=1e-6)


def test_groups_count_alike_and_unlabelled_groups_not_at_all():
    logits = torch.zeros(2, 3, 3)
    logits[:, 1, 0] = 5.0
    groups = torch.tensor([0, 1, 1])
    severities = torch.tensor([[0, 0, -100], [2, 0, -100]])
    expected = (np.log(3) + functional.cross_entropy(logits[0, 1:2], torch.tensor([0])).item()) / 2
    assert cross_entropy(logits, severities, groups).mean.item() == pytest.approx(expected, rel=1e-5)
    nothing = torch.full((2, 3), -100)
    for loss in (cross_entropy(logits, nothing, groups), competition(logits, nothing, groups, torch.arange(2))):
        assert loss.total == 0 and loss.weight == 0


def test_weighted_bce_by_hand():
    logits = torch.tensor([[[0.0, 0.0, 0.0]], [[2.0, -1.0, 0.5]], [[7.0, 7.0, 7.0]]])
    severities = torch.tensor([[0], [2], [-100]])
    second = functional.binary_cross_entropy_with_logits(logits[1, 0], torch.tensor([0.0, 0.0, 1.0])).item()
    assert weighted_bce(logits, severities).mean.item() == pytest.approx((np.log(2) + 4 * second) / 5, rel=1e-6)


def test_only_slices_near_the_target_are_graded_and_all_learn_whether_they_are():
    said = torch.zeros(1, 3, 1, 4)
    said[0, 0, 0, :3] = torch.tensor([9.0, -9.0, -9.0])
    said[0, 1:, 0, :3] = torch.tensor([-9.0, 9.0, 9.0])  # wrong, yet far away
    distance_mm = torch.tensor([0.5, 30.0, 40.0]).reshape(1, 3, 1)
    loss = valid_slices_bce(said, torch.tensor([[0]]), distance_mm, valid_mm=8)
    assert loss.mean.item() == pytest.approx(np.log(2), abs=1e-3)
    said[..., 3] = torch.tensor([9.0, -9.0, -9.0])[:, None]
    assert valid_slices_bce(said, torch.tensor([[0]]), distance_mm, valid_mm=8).mean.item() < 1e-3
    unknown = valid_slices_bce(said, torch.tensor([[0]]), torch.full_like(distance_mm, NAN), valid_mm=8)
    assert unknown.mean == 0


def batch_of(severities: torch.Tensor, **changes) -> Batch:
    count = len(severities)
    origin = Origin(torch.arange(count), torch.zeros(severities.shape[1], dtype=torch.long))
    return replace(Batch((), torch.ones(count, 1), severities, origin=origin), **changes)


def test_blended_batches_are_judged_by_both_labels():
    recipe = grader()
    said = torch.randn(4, 1, 3)
    own, other = torch.tensor([[0], [1], [2], [-100]]), torch.tensor([[1], [1], [0], [2]])
    loss = LOSSES["weighted_cross_entropy"](said, batch_of(own, other=other, share=0.25), recipe.fitting)
    parts = [weighted_cross_entropy(said, target) for target in (own, other)]
    assert loss.total.item() == pytest.approx(0.25 * parts[0].total.item() + 0.75 * parts[1].total.item(), rel=1e-6)
    assert loss.weight.item() == pytest.approx(0.25 * parts[0].weight.item() + 0.75 * parts[1].weight.item())


def test_answers_by_slice_each_have_the_label_of_their_crop():
    recipe = grader()
    said = torch.randn(2, 5, 1, 3)
    loss = LOSSES["weighted_bce"](said, batch_of(torch.tensor([[0], [2]])), recipe.fitting)
    one_by_one = weighted_bce(said.flatten(0, 1), torch.tensor([[0]] * 5 + [[2]] * 5))
    assert loss.mean.item() == pytest.approx(one_by_one.mean.item(), rel=1e-6)


def test_losses_that_lack_what_they_need_say_so():
    recipe, said = grader(), torch.zeros(1, 1, 3)
    with pytest.raises(ValueError, match="this loss is for graders"):
        LOSSES["competition"](said, replace(batch_of(torch.tensor([[0]])), origin=None), recipe.fitting)
    with pytest.raises(ValueError, match="needs the distances of slices"):
        LOSSES["valid_slices_bce"](torch.zeros(1, 2, 1, 4), batch_of(torch.tensor([[0]])), recipe.fitting)


SOFT_OR_HARD = {
    "weighted_cross_entropy": lambda logits, target: weighted_cross_entropy(logits, target),
    "weighted_bce": lambda logits, target: weighted_bce(logits, target),
    "cross_entropy": lambda logits, target: cross_entropy(logits, target, GROUP_OF_ROW),
    "competition": lambda logits, target: competition(logits, target, GROUP_OF_ROW, torch.arange(len(logits))),
}


@pytest.mark.parametrize("name", SOFT_OR_HARD)
def test_soft_targets_that_are_one_label_cost_what_the_label_costs(name):
    logits, severities = random_study(6, 3)
    unknown = np.full((6, 25, 3), np.nan)
    masses = torch.from_numpy(target_masses(severities.numpy(), unknown, 0.5))
    hard, soft = (SOFT_OR_HARD[name](logits, target) for target in (severities, masses))
    assert soft.mean.item() == pytest.approx(hard.mean.item(), rel=1e-5)
    assert soft.weight.item() == pytest.approx(hard.weight.item(), rel=1e-5)


def test_soft_targets_are_best_answered_by_themselves():
    answers = np.random.default_rng(0).dirichlet([1, 1, 1], (2, 3))
    masses = torch.from_numpy(target_masses(np.full((2, 3), -100), answers, 1.0))
    logits = torch.from_numpy(np.log(answers)).float().requires_grad_()
    weighted_cross_entropy(logits, masses).mean.backward()
    assert logits.grad.abs().max() < 1e-6


def test_a_study_is_as_severe_as_its_surest_level():
    logits = torch.zeros(1, 25, 3)
    masses = torch.zeros(1, 25, 3)
    canal = [place for place, row in enumerate(ROWS) if group_of(row) == "spinal"]
    masses[0, canal[0]] = torch.tensor([0.8, 0.0, 0.2 * 4])
    masses[0, canal[1]] = torch.tensor([0.5, 0.0, 0.5 * 4])
    spinal = np.log(3)  # of logits that are all alike
    any_severe = -0.5 * np.log(1 / 3) - 0.5 * np.log(2 / 3)
    loss = competition(logits, masses, GROUP_OF_ROW, torch.arange(1))
    assert loss.mean.item() == pytest.approx((spinal + any_severe) / 2, rel=1e-5)
