"""The contract of every grader of every recipe, as exported: one test for all of them.

The networks of the smoke profiles with random weights; in half only one of each architecture, the others and those of
the published size behind `make test-all`.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from kernels.lumbar.answers.grade import grade
from kernels.lumbar.inputs.member_inputs import InputCache
from kernels.lumbar.inputs.mirroring import mirrored_tensors, turned_tensors
from kernels.lumbar.labels import UNITS, mirrored, row_of
from kernels.lumbar.networks.loading import load_member
from kernels.lumbar.networks.weights import golden_inputs
from kernels.lumbar.specs import Member
from kernels.profiles import Profile
from tests.support.anatomy.studies import MINUS_X, mirror_study
from tests.support.networks.bare_torch import bare_answers
from tests.support.networks.recipe_members import export_untrained, members
from tests.support.sweeps import by_kind, one_of_each_kind
from training import networks
from training.fitting.export import parity_inputs

CPU = torch.device("cpu")
SMALL = members("smoke", "grader")
every_grader = pytest.mark.parametrize("recipe", SMALL, ids=[one.member.name for one in SMALL])


@every_grader
def test_exported_answers_are_logits_whatever_view_is_missing(exported, recipe):
    folder, artefact = exported(recipe)
    loaded = load_member(folder, artefact, CPU)
    for missing in range(len(recipe.member.inputs)):
        *views, present = parity_inputs(recipe.member, 1, 3)
        present[:, -1] = 1
        present[-1, missing] = 0
        views[missing][-1] = 0
        answer = loaded(views, present)
        assert answer.shape == (3, len(recipe.member.targets), 3) and answer.isfinite().all()


@pytest.mark.parametrize("recipe", by_kind(SMALL))
def test_exported_networks_work_in_half(exported, recipe):
    folder, artefact = exported(recipe)
    *views, present = golden_inputs(recipe.member, 3, 2)
    half = load_member(folder, artefact, CPU, half=True)(views, present)
    assert half.dtype == torch.float32 and half.isfinite().all()


@every_grader
def test_what_a_missing_view_holds_does_not_matter(recipe):
    if len(recipe.member.inputs) == 1:
        pytest.skip("a unit whose only view is missing is not graded")
    net = networks.for_member(recipe, pretrained=False).eval()
    *views, present = golden_inputs(recipe.member, 5, 2)
    present[1, -1] = 0
    with torch.no_grad():
        before = net(*views, present)
        views[-1][1] = 0
        torch.testing.assert_close(net(*views, present), before)


@every_grader
def test_every_parameter_learns(recipe):
    net = networks.for_member(recipe, pretrained=False).train()
    *views, present = golden_inputs(recipe.member, 5, 4)
    if len(views) > 1:
        present[0, 0], present[1, -1] = 0, 0
    output = net.outputs(*views, present) if hasattr(net, "outputs") else net(*views, present)
    parts = [output] if isinstance(output, torch.Tensor) else [part for part in output if part is not None]
    sum((part * torch.randn_like(part)).sum() for part in parts).backward()
    without = [name for name, value in net.named_parameters() if value.grad is None]
    assert not [name for name in without if "missing" not in name]


def test_exported_networks_need_no_source(exported, tmp_path):
    made = [exported(recipe) for recipe in one_of_each_kind(SMALL)]
    answers = bare_answers([(folder, golden_inputs(a.member, a.weights.golden_seed)) for folder, a in made], tmp_path)
    for answer, (_, artefact) in zip(answers, made, strict=True):
        np.testing.assert_allclose(answer.ravel(), artefact.weights.golden_output, rtol=1e-4, atol=1e-4)


@every_grader
def test_a_mirrored_study_is_graded_with_left_and_right_exchanged(exported, recipe, foreign_study):
    """Networks of one side by themselves; those that see both sides once they answer for the mirrored study too."""
    study, landmarks = foreign_study
    folder, artefact = exported(recipe)
    sided = recipe.member.unit in ("side", "level_side")
    asked = recipe.member.model_copy(update={"tta": () if sided else ("mirror",)})
    Member.model_validate(asked.model_dump())  # has the partners that the flip needs
    member = load_member(folder, artefact.model_copy(update={"member": asked}), CPU)
    turned = {mirrored(row): point * MINUS_X for row, point in landmarks.items()}
    (found,) = grade(InputCache([study], [landmarks]), member, tta=True)
    (opposite,) = grade(InputCache([mirror_study(study)], [turned]), member, tta=True)
    assert found and {mirrored(row) for row in found} == set(opposite)
    assert max(np.ptp(logits) for logits in found.values()) > 1e-6, "an answer that says nothing proves nothing"
    for row, logits in found.items():
        np.testing.assert_allclose(opposite[mirrored(row)], logits, atol=1e-5)


EVERY = [one for profile in get_args(Profile) for one in members(profile, "grader")]
# Networks that differ in their backbone alone are shown the same.
SHOWN = {(one.member.unit, one.member.inputs): one for one in EVERY}


@pytest.mark.parametrize(
    "recipe", SHOWN.values(), ids=[f"{one.member.name}-{place}" for place, one in enumerate(SHOWN.values())]
)
def test_a_mirrored_study_is_shown_to_the_bit_as_its_mirror_image(recipe, foreign_study):
    """Every input of every grader in every profile, at a quarter of the pixels."""
    study, landmarks = foreign_study
    views = tuple(view.model_copy(update={"size_px": max(view.size_px // 4, 16)}) for view in recipe.member.inputs)
    member = recipe.member.model_copy(update={"inputs": views})
    turned = {mirrored(row): point * MINUS_X for row, point in landmarks.items()}
    inputs = InputCache([study], [landmarks]).inputs_of(member)
    opposite = InputCache([mirror_study(study)], [turned]).inputs_of(member)
    units = UNITS[member.unit]
    if member.unit in ("side", "level_side"):
        partner = [units.index(unit.mirrored()) for unit in units]
        expected, present = [tensor[partner] for tensor in inputs.tensors], inputs.present[partner]
    else:
        expected, present = mirrored_tensors(member, inputs.tensors, inputs.present)
    assert inputs.present.any() and torch.equal(opposite.present, present)
    for number, (shown, one) in enumerate(zip(opposite.tensors, expected, strict=True)):
        assert (shown - one).abs().max() < 1e-5, f"view {number}"


@every_grader
def test_front_to_back_averages_both_ways_to_look(exported, recipe, foreign_study):
    study, landmarks = foreign_study
    folder, artefact = exported(recipe)
    asked = recipe.member.model_copy(update={"tta": ("front_to_back",)})
    loaded = load_member(folder, artefact.model_copy(update={"member": asked}), CPU)
    inputs = InputCache([study], [landmarks]).inputs_of(asked)
    tensors, present = inputs.tensors, inputs.present
    both = torch.stack([loaded(tensors, present), loaded(turned_tensors(asked, tensors), present)]).mean(0).numpy()
    again = turned_tensors(asked, turned_tensors(asked, tensors))
    assert all(torch.equal(one, other) for one, other in zip(again, tensors, strict=True))
    (found,) = grade(InputCache([study], [landmarks]), loaded, tta=True)
    for (_, unit), seen, answers in zip(inputs.places, inputs.seen, both, strict=True):
        if not seen:
            continue
        for target, logits in zip(asked.targets, answers, strict=True):
            np.testing.assert_allclose(found[row_of(target, unit)], logits, atol=1e-5)


LARGE = members("full", "grader")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", LARGE, ids=[one.member.name for one in LARGE])
def test_networks_of_the_published_size_export(recipe, tmp_path):
    load_member(tmp_path, export_untrained(recipe, tmp_path), CPU)
