"""Auxiliary heads: what they learn from, what they leave in the exported network (nothing), and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.support.networks.tiny_members import PROVENANCE, TinySamples, grader
from training import networks
from training.data.samples.batch import Batch
from training.data.soft_labels import target_masses
from training.data.tables import MISSING
from training.fitting.export import export
from training.fitting.loop import fit
from training.fitting.losses import LOSSES, answer, loss_of
from training.fitting.losses.registry import outputs_of
from training.fitting.losses.slice_losses import nearest_slice
from training.networks import NetworkError
from training.networks.parts.auxiliary import Headed
from training.recipe_schema.fitting import Auxiliary
from training.recipe_schema.load import RECIPES, load_recipe, merge
from training.recipe_schema.schema import MemberRecipe, RecipeError

CPU = torch.device("cpu")


def with_heads(recipe: MemberRecipe, **heads: float) -> MemberRecipe:
    return recipe.with_fitting(auxiliary=Auxiliary(**heads))


def batch_of(recipe: MemberRecipe, count: int = 4) -> Batch:
    batch = next(TinySamples(recipe, held_out=count).validation())
    slices, targets = recipe.member.inputs[0].slices.count, len(recipe.member.targets)
    distance_mm = (torch.arange(slices) - 1.0)[None, :, None].repeat(len(batch.target), 1, targets) * 4
    return Batch(batch.views, batch.present, batch.target, distance_mm)


def test_the_nearest_slice_by_hand():
    logits = torch.tensor([[[0.0, 5.0], [2.0, 5.0], [0.0, 5.0]]])  # (1, 3, 2)
    distance_mm = torch.tensor([[[-4.0, 30.0], [0.5, 20.0], [4.5, 11.0]]])  # the second is shown by no slice
    total, weight = nearest_slice(logits, distance_mm)
    assert weight == 1 and total == pytest.approx(math.log(math.exp(2) + 2) - 2)
    unknown = nearest_slice(logits, torch.full_like(distance_mm, torch.nan))
    assert unknown.total == 0 and unknown.weight == 0


def test_losses_of_heads_are_added_by_their_weights_and_only_in_training():
    recipe = with_heads(grader(), depth=0.5, streams=2.0)
    net, batch = networks.for_member(recipe).train(), batch_of(recipe)
    loss, outputs = answer(net, batch, recipe.fitting)
    assert isinstance(outputs, Headed) and outputs.depth is not None and outputs.streams is not None
    assert outputs.depth.shape == (4, 3, 1) and outputs.streams.shape == (4, 2, 1, 3)
    plain = LOSSES["weighted_cross_entropy"]
    own = plain(outputs.logits, batch, recipe.fitting)
    assert batch.known_distances is not None
    depth = nearest_slice(outputs.depth, batch.known_distances).mean
    by_view = []
    for view in range(2):
        shown = torch.where(batch.present[:, view, None] > 0, batch.target, MISSING)
        by_view.append(plain(outputs.streams[:, view], Batch(batch.views, batch.present, shown), recipe.fitting).mean)
    expected = own.mean + 0.5 * depth + 2.0 * torch.stack(by_view).mean()
    torch.testing.assert_close(loss.mean, expected)
    assert loss.weight == own.weight
    logits = net.eval().outputs(*batch.views, batch.present)
    torch.testing.assert_close(loss_of(logits, batch, recipe.fitting).mean, plain(logits, batch, recipe.fitting).mean)


@pytest.mark.parametrize("loss", ["weighted_cross_entropy", "weighted_bce"])
def test_soft_labels_that_are_sure_teach_heads_what_labels_do(loss):
    recipe = with_heads(grader("global_gru"), streams=2.0).with_fitting(loss=loss)
    net, batch = networks.for_member(recipe).train(), batch_of(recipe, 4)
    assert batch.target.shape == (4, 5) and 0 < (batch.present == 0).sum(), "samples lack a view"
    batch = replace(batch, other=batch.target.roll(1, 0), share=0.7)
    none = np.full((4, 5, 3), np.nan)
    target, other = (torch.from_numpy(target_masses(one.numpy(), none, 0.5)) for one in (batch.target, batch.other))
    outputs = outputs_of(net)(*batch.views, batch.present)
    of_labels, of_masses = (
        loss_of(outputs, one, recipe.fitting) for one in (batch, replace(batch, target=target, other=other))
    )
    torch.testing.assert_close(of_masses.mean, of_labels.mean)


def test_a_view_that_is_missing_teaches_its_head_nothing():
    recipe = with_heads(grader(), streams=1.0)
    net, batch = networks.for_member(recipe).train(), batch_of(recipe)
    batch.present[:, 1] = 0
    answer(net, batch, recipe.fitting)[0].mean.backward()
    heads: Any = net.auxiliary.streams  # type: ignore[union-attr]
    assert heads[1].weight.grad.abs().max() == 0 < heads[0].weight.grad.abs().max()


@pytest.mark.parametrize("network", ["split_gru", "slice_mil"])
def test_the_exported_network_has_none_of_them(tmp_path, network):
    """The very bytes of the network without heads, of the same weights."""
    recipe = grader(network)
    torch.manual_seed(3)
    plain = networks.for_member(recipe)
    torch.manual_seed(3)
    headed = networks.for_member(with_heads(recipe, depth=1.0, streams=1.0))
    assert len(list(headed.parameters())) > len(list(plain.parameters()))
    made = [
        export(net, recipe, tmp_path / name, PROVENANCE, seed=5).weights
        for name, net in (("plain", plain), ("headed", headed))
    ]
    assert made[0] == made[1]
    assert any(name.startswith("auxiliary.") for name, _ in headed.named_parameters()), "the network itself keeps them"


def test_a_network_with_heads_learns_and_may_begin_from_an_exported_one(tmp_path):
    recipe = with_heads(grader("slice_mil", epochs=5, batch_size=8), streams=0.3)
    result = fit(recipe, TinySamples(recipe, steps=10, held_out=16), tmp_path / "first", CPU, seed=1)
    assert result.validation_loss < 0.7 < math.log(3)
    state = {name: value for name, value in result.net.state_dict().items() if not name.startswith("auxiliary.")}
    again = fit(recipe, TinySamples(recipe, steps=2), tmp_path / "again", CPU, seed=1, initial=state)
    assert set(again.net.state_dict()) == set(result.net.state_dict())


def test_networks_without_heads_say_which_have_them():
    recipe = grader().model_copy(update={"backbone": grader().backbone})
    changed = with_heads(recipe, streams=1.0)
    network = changed.fitting.network.model_copy(update={"name": "view_fusion", "options": {}})
    with pytest.raises(NetworkError, match="auxiliary: view_fusion has no auxiliary heads; these have: global_gru, "):
        networks.check(changed.with_fitting(network=network))


@pytest.mark.parametrize(
    ("place", "changes", "sentence"),
    [
        ("localisers.sagittal_t2", "{auxiliary: {depth: 1}}", "auxiliary: is for graders: the loss of a localiser"),
        (
            "graders.foraminal",
            "{auxiliary: {streams: 1}}",
            "auxiliary.streams: grades each view alone, and there is one",
        ),
        ("graders.spinal", "{auxiliary: {depth: -1}}", "auxiliary.depth: Input should be greater than or equal to 0"),
        ("graders.spinal", "{auxiliary: {level: 1}}", "auxiliary.level: there is no such key"),
        (
            "graders.spinal",
            "{auxiliary: {depth: 1}, augmentation: {cutmix: 0.5}}",
            "auxiliary.depth: with cutmix no slice is the target's: leave one of the two out",
        ),
        (
            "graders.subarticular",
            "{auxiliary: {depth: 1}}",
            "auxiliary.depth: with slice_shuffle no slice is the target's: leave one of the two out",
        ),
    ],
)
def test_heads_that_cannot_learn_are_refused_by_their_path(tmp_path, place, changes, sentence):
    document = yaml.safe_load((RECIPES / "split_and_global.yaml").read_text())
    role, name = place.split(".")
    # A copy of its own: recipes share parts by anchors.
    document[role] = dict(document[role]) | {name: merge(document[role][name], {"fitting": yaml.safe_load(changes)})}
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in document.items() if key != "profiles"}))
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    assert f"{place}.fitting.{sentence}" in str(refused.value)


def test_a_first_view_of_one_side_has_no_depth_where_studies_are_mirrored():
    recipe = load_recipe(RECIPES / "first_place.yaml", "smoke").grader("canal", "tiny")
    given = recipe.model_dump()
    side = {"centre": ("left_subarticular_stenosis",), "crop_offset": None}
    first, axial = given["member"]["inputs"]
    given["member"] |= {"inputs": (axial | side, first), "tta": ()}
    with pytest.raises(ValueError, match="a mirrored study shows another side in the first view"):
        MemberRecipe.model_validate(given)
    given["fitting"]["augmentation"]["mirror"] = 0.0
    MemberRecipe.model_validate(given)


def test_a_recipe_without_heads_is_written_as_before_there_were_any():
    recipe = grader()
    assert "auxiliary" not in recipe.model_dump(mode="json")["fitting"]
    heads = with_heads(recipe, depth=0.2).model_dump(mode="json")["fitting"]["auxiliary"]
    assert heads == {"depth": 0.2, "streams": 0.0}
