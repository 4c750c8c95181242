"""The contract of every localiser of every recipe, as exported: one test for all of them.

The networks of the smoke profiles with random weights: one of each architecture, the others and those of the published
size behind `make test-all`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.lumbar.answers.localiser_answers import answers_of
from kernels.lumbar.inputs.member_inputs import InputCache
from kernels.lumbar.labels import mirrored
from kernels.lumbar.networks.loading import load_member
from kernels.lumbar.networks.weights import golden_inputs
from tests.support.anatomy.studies import MINUS_X, mirror_study
from tests.support.networks.bare_torch import bare_answers
from tests.support.networks.recipe_members import export_untrained, members
from tests.support.sweeps import by_kind, one_of_each_kind
from training.fitting.export import parity_inputs
from training.recipe_schema.schema import MemberRecipe

CPU = torch.device("cpu")
SMALL = members("smoke", "localiser")
every_localiser = pytest.mark.parametrize("recipe", by_kind(SMALL))


def half_blank(recipe: MemberRecipe, batch: int) -> list[torch.Tensor]:
    """Noise whose padded views end in blank slices."""
    *views, present = parity_inputs(recipe.member, 1, batch)
    for view, request in zip(views, recipe.member.inputs, strict=True):
        if request.slices.fit == "pad":
            view[:, request.slices.count // 2 :] = 0
    return [*views, present]


@every_localiser
def test_exported_answers_are_points_inside_the_image(exported, recipe):
    folder, artefact = exported(recipe)
    request = recipe.member.inputs[0]
    *views, present = half_blank(recipe, 3)
    answer = load_member(folder, artefact, CPU)(views, present)
    assert answer.shape == (3, len(recipe.member.targets), 4) and answer.isfinite().all()
    confidence = answer[..., 3]
    assert ((confidence >= 0) & (confidence <= 1)).all()
    last = request.slices.count // 2 if request.slices.fit == "pad" else request.slices.count
    assert (answer[:2, :, 0] >= -0.5).all() and (answer[:2, :, 0] <= last - 0.5).all(), (
        "on a slice that shows something"
    )
    if len(views) == 1:
        assert (confidence[-1] == 0).all(), "the last sample's view is missing"


@every_localiser
def test_exported_networks_work_in_half(exported, recipe):
    folder, artefact = exported(recipe)
    *views, present = half_blank(recipe, 1)
    half = load_member(folder, artefact, CPU, half=True)(views, present)
    assert half.dtype == torch.float32 and half.isfinite().all()


def test_exported_networks_need_no_source(exported, tmp_path):
    made = [exported(recipe) for recipe in one_of_each_kind(SMALL)]
    answers = bare_answers([(folder, golden_inputs(a.member, a.weights.golden_seed)) for folder, a in made], tmp_path)
    for answer, (_, artefact) in zip(answers, made, strict=True):
        np.testing.assert_allclose(answer.ravel(), artefact.weights.golden_output, rtol=1e-4, atol=1e-4)


def symmetric(recipe: MemberRecipe) -> bool:
    """Whether the localiser shows both sides alike: by mirrored test-time augmentation, or as left ones."""
    sided = recipe.member.unit in ("side", "level_side")
    return bool(recipe.member.tta) or (sided and all(request.mirror_right for request in recipe.member.inputs))


SYMMETRIC = [recipe for recipe in SMALL if symmetric(recipe)]


@pytest.mark.parametrize("recipe", SYMMETRIC, ids=[one.member.name for one in SYMMETRIC])
def test_a_mirrored_study_has_mirrored_points(exported, recipe, foreign_study):
    study, landmarks = foreign_study
    folder, artefact = exported(recipe)
    member = load_member(folder, artefact, CPU)
    turned = {mirrored(row): point * MINUS_X for row, point in landmarks.items()}
    (found,) = answers_of(InputCache([study], [landmarks]), member, [{}], tta=True)
    (opposite,) = answers_of(InputCache([mirror_study(study)], [turned]), member, [{}], tta=True)
    assert found and {mirrored(row) for row in found} == set(opposite)
    for row, answer in found.items():
        other = opposite[mirrored(row)]
        assert answer.confidence == pytest.approx(other.confidence, abs=0.02)
        np.testing.assert_allclose(answer.point * MINUS_X, other.point, atol=1.0)


LARGE = members("full", "localiser")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", LARGE, ids=[one.member.name for one in LARGE])
def test_networks_of_the_published_size_export(recipe, tmp_path):
    load_member(tmp_path, export_untrained(recipe, tmp_path), CPU)
