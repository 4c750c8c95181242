"""The contract of every localiser of every recipe, as exported: one test for all of them.

The networks of the smoke profiles with random weights; those of the published size behind `make test-all`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bare_torch import bare_answers
from dicom_factory import write_foreign_dataset
from studies import MINUS_X, mirror_study
from tiny_members import PROVENANCE

from kernels.lumbar.answers import answers_of
from kernels.lumbar.competition import read_series_table
from kernels.lumbar.dicom import read_study
from kernels.lumbar.labels import mirrored
from kernels.lumbar.manifest import Artefact
from kernels.lumbar.weights import golden_inputs, load_member
from training import networks
from training.fitting.export import export, parity_inputs
from training.recipe import MemberRecipe
from training.train_all import RECIPES, load_named

CPU = torch.device("cpu")


def localisers(profile: str) -> list[MemberRecipe]:
    recipes = [load_named(path.stem, profile) for path in sorted(RECIPES.glob("*.yaml"))]
    return [one for recipe in recipes for one in recipe.members() if one.member.role == "localiser"]


SMALL = localisers("smoke")
every_localiser = pytest.mark.parametrize("recipe", SMALL, ids=[one.member.name for one in SMALL])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """Folder and artefact of a localiser with random weights, exported once; export proves parity at batch 1, 3, 17."""
    made: dict[str, tuple[Path, Artefact]] = {}

    def get(recipe: MemberRecipe) -> tuple[Path, Artefact]:
        name = recipe.member.name
        if name not in made:
            torch.manual_seed(4)
            net = networks.for_member(recipe, pretrained=False)
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, export(net, recipe, folder, PROVENANCE, seed=7)
        return made[name]

    return get


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
    *views, present = half_blank(recipe, 2)
    half = load_member(folder, artefact, CPU, half=True)(views, present)
    assert half.dtype == torch.float32 and half.isfinite().all()


def test_exported_networks_need_no_source(exported, tmp_path):
    made = [exported(recipe) for recipe in SMALL]
    answers = bare_answers([(folder, golden_inputs(a.member, a.weights.golden_seed)) for folder, a in made], tmp_path)
    for answer, (_, artefact) in zip(answers, made, strict=True):
        np.testing.assert_allclose(answer.ravel(), artefact.weights.golden_output, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory):
    """A study that the phantom did not make, and where its landmarks are."""
    root = tmp_path_factory.mktemp("data")
    truth = write_foreign_dataset(root, studies=1, seed=11, test_studies=0)
    ((name, series),) = read_series_table(root / "train_series_descriptions.csv").series.items()
    return read_study(root / "train_images" / name, name, series), truth.landmarks[name]


def symmetric(recipe: MemberRecipe) -> bool:
    """Whether the localiser shows both sides alike: by mirrored test-time augmentation, or as left ones."""
    sided = recipe.member.unit in ("side", "level_side")
    return bool(recipe.member.tta) or (sided and all(request.mirror_right for request in recipe.member.inputs))


SYMMETRIC = [recipe for recipe in SMALL if symmetric(recipe)]


@pytest.mark.parametrize("recipe", SYMMETRIC, ids=[one.member.name for one in SYMMETRIC])
def test_a_mirrored_study_has_mirrored_points(exported, recipe, real):
    study, landmarks = real
    folder, artefact = exported(recipe)
    member = load_member(folder, artefact, CPU)
    turned = {mirrored(row): point * MINUS_X for row, point in landmarks.items()}
    found = answers_of(study, member, landmarks, {}, {}, tta=True)
    opposite = answers_of(mirror_study(study), member, turned, {}, {}, tta=True)
    assert found and {mirrored(row) for row in found} == set(opposite)
    for row, answer in found.items():
        other = opposite[mirrored(row)]
        assert answer.confidence == pytest.approx(other.confidence, abs=0.02)
        np.testing.assert_allclose(answer.point * MINUS_X, other.point, atol=1.0)


LARGE = localisers("full")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", LARGE, ids=[one.member.name for one in LARGE])
def test_networks_of_the_published_size_export(recipe, tmp_path):
    torch.manual_seed(4)
    artefact = export(networks.for_member(recipe, pretrained=False), recipe, tmp_path, PROVENANCE, seed=7)
    load_member(tmp_path, artefact, CPU)
