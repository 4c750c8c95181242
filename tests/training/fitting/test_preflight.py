"""What a recipe gets wrong is found before anything is decoded, and named by its dotted path."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import yaml

from kernels.profiles import Profile
from training.fitting.losses import LOSSES
from training.fitting.preflight import check_losses, check_recipes
from training.networks import NetworkError
from training.recipe_schema.load import RECIPES, load_named, merge
from training.recipe_schema.schema import Recipe, RecipeError


def smoke_of(name: str, changes: str) -> Recipe:
    """A recipe of the project in its smallest profile, changed, with nothing but what was changed and a localiser."""
    document = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    document = copy.deepcopy(merge(document, document.pop("profiles")["smoke"]) | {"profile": "smoke"})
    wanted: dict[str, Any] = yaml.safe_load(changes)
    changed = merge(document, wanted)
    changed["graders"] = {grader: changed["graders"][grader] for grader in wanted.get("graders", {})}
    kept = wanted.get("localisers") or [next(iter(changed["localisers"]))]
    changed["localisers"] = {localiser: changed["localisers"][localiser] for localiser in kept}
    return Recipe.model_validate(changed)


@pytest.mark.parametrize(
    ("name", "changes", "error", "sentence"),
    [
        (
            "slice_experts",
            "graders: {foraminal: {fitting: {network: {options: {pooling: medain}}}}}",
            NetworkError,
            "slice_experts_foraminal_tiny: graders.foraminal.fitting.network.options.pooling: pooling is one of mean,",
        ),
        (
            "slice_experts",
            "graders: {spinal: {fitting: {network: {options: {poling: median}}}}}",
            NetworkError,
            "graders.spinal.fitting.network.options.poling: 'slice_pool' has no option poling; it has: pretrained, ",
        ),
        (
            "split_and_global",
            "graders: {spinal: {fitting: {network: {name: split_gro}}}}",
            NetworkError,
            "graders.spinal.fitting.network.name: there is no architecture 'split_gro'; there are: ",
        ),
        (
            "split_and_global",
            "{graders: {spinal: {}}, backbones: {tiny: {timm: test_resnot}}}",
            NetworkError,
            "split_and_global_spinal_tiny: backbones.tiny.timm: timm has no model 'test_resnot'",
        ),
        (
            "slice_experts",
            "{graders: {spinal_axial: {}}, backbones: {tiny_csn: {options: {pooling: volum}}}}",
            NetworkError,
            "slice_experts_spinal_axial_tiny_csn: backbones.tiny_csn.options.pooling: pooling is one of",
        ),
        (
            "split_and_global",
            "{localisers: {axial_t2: {fitting: {network: {options: {encoder: tu-resnet10x}}}}}}",
            NetworkError,
            "split_and_global_axial_t2: localisers.axial_t2.fitting.network.options.encoder: timm has no model",
        ),
        (
            "level_sequence",
            "graders: {conditions: {fitting: {network: {options: {width: wide}}}}}",
            NetworkError,
            "level_sequence_conditions_tiny: graders.conditions.fitting.network",
        ),
        (
            "level_sequence",
            "graders: {conditions: {fitting: {second_step: {parts: [haeds]}}}}",
            NetworkError,
            "graders.conditions.fitting.second_step.parts: condition_sequence has no part 'haeds'; it has: by_",
        ),
        (
            "level_sequence",
            "graders: {conditions: {fitting: {second_step: {loss: heatmap_mse}}}}",
            NetworkError,
            "graders.conditions.fitting.second_step.loss: condition_sequence is fitted with cross_entropy or",
        ),
        (
            "split_and_global",
            "graders: {spinal: {fitting: {loss: focal}}}",
            RecipeError,
            "split_and_global_spinal_tiny: graders.spinal.fitting.loss: there is no loss 'focal'; there are: ",
        ),
        (
            "slice_experts",
            "graders: {spinal_all_slices: {fitting: {loss_options: {valid_mm: null, valid_m: 10}}}}",
            RecipeError,
            "slice_experts_spinal_all_slices_tiny: graders.spinal_all_slices.fitting.loss_options.valid_m: "
            "valid_slices_bce has no such option; it has: valid_mm",
        ),
        (
            "level_sequence",
            "graders: {conditions: {fitting: {second_step: {loss_options: {any: 1}}}}}",
            RecipeError,
            "graders.conditions.fitting.second_step.loss_options.any: competition has no such option; it has none",
        ),
    ],
)
def test_mistakes_are_named_by_their_path(name, changes, error, sentence):
    with pytest.raises(error) as refused:
        check_recipes([smoke_of(name, changes)])
    assert sentence in str(refused.value)


def test_what_is_not_trained_is_not_checked():
    wrong = smoke_of("split_and_global", "graders: {spinal: {fitting: {network: {name: split_gro}}}}")
    check_recipes([wrong], localisers_only=True)


@pytest.mark.parametrize("profile", get_args(Profile))
def test_losses_take_the_options_of_all_recipes(profile):
    for path in RECIPES.glob("*.yaml"):
        for entry in load_named(path.stem, profile).members():
            check_losses(entry)


def test_options_of_losses_are_what_they_are_called_with():
    options = {name: loss.options for name, loss in LOSSES.items()}
    assert options["weighted_bce"] == () and options["valid_slices_bce"] == ("valid_mm",)
    assert options["heat_and_pointer_bce"] == ("halving_mm", "farthest_mm")
    assert options["coordinate_smooth_l1"] == ("confidence", "hit_px", "hit_slices", "attention")
    assert "foreground" in options["level_classes"] and options["heatmap_mse"] == ()


def test_losses_of_all_graders_are_known():
    graders = {name for name, loss in LOSSES.items() if loss.any_grader}
    assert graders == {"cross_entropy", "weighted_cross_entropy", "weighted_bce", "competition"}
