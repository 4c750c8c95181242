"""What the recipes share with the write-ups (training/recipes/PAPERS.md), in every profile that has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from kernels.lumbar.inputs.normalise import normalise
from kernels.lumbar.labels import Unit
from kernels.profiles import Profile
from training.data.samples.augment import grey_changes
from training.recipe_schema.load import RECIPES, load_named, load_recipe
from training.recipe_schema.schema import MemberRecipe, RecipeError

PROFILES = get_args(Profile)
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
EVERY = [
    (f"{one.member.name}-{profile}", one)
    for name in NAMES
    for profile in PROFILES
    for one in load_named(name, profile).members()
]
MEMBERS = [pytest.param(one, id=name) for name, one in EVERY]
GRADERS = [pytest.param(one, id=name) for name, one in EVERY if one.member.role == "grader"]
FULL = {one.member.name: one for name, one in EVERY if name.endswith("-full")}
GREY = [
    pytest.param(one, id=name)
    for name, one in EVERY
    if one.fitting.augmentation.brightness or one.fitting.augmentation.contrast
]


@pytest.mark.parametrize("recipe", GREY)
def test_changes_of_brightness_and_contrast_reach_the_network(recipe: MemberRecipe):
    """A z-score would take them away again."""
    generator = torch.Generator().manual_seed(0)
    pixels = 60 + 100 * torch.rand(64, 1, 12, 12, generator=generator)
    changed = grey_changes(pixels, recipe.fitting.augmentation.model_copy(update={"noise": 0.0}), generator)
    for request in recipe.member.inputs:
        if request.marks:
            continue  # drawn in fixed greys
        before, after = (normalise(one, request.normalisation) for one in (pixels, changed))
        apart = (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
        assert (apart > 0.01).float().mean() > 0.85


def test_networks_that_ask_for_grey_changes_are_those_of_four_systems():
    names = {one.values[0].member.name.rsplit("_", 1)[0] for one in GREY}
    for system in (
        "slice_experts_spinal",
        "level_sequence_conditions",
        "view_fusion_fusion",
        "view_fusion_spinal_rois",
    ):
        assert any(name.startswith(system) for name in names)


@pytest.mark.parametrize("recipe", MEMBERS)
def test_inputs_are_from_0_to_1_but_for_the_ninth_places(recipe: MemberRecipe):
    is_ninth = recipe.member.name.startswith("split_and_global_")
    assert {view.normalisation for view in recipe.member.inputs} == {"zscore" if is_ninth else "unit"}


@pytest.mark.parametrize("recipe", GRADERS)
def test_graders_train_on_slices_that_are_off_as_those_of_their_localisers(recipe: MemberRecipe):
    if any(view.slices.by == "landmark" for view in recipe.member.inputs):
        assert recipe.fitting.augmentation.slice_jitter == "localiser"
        assert recipe.fitting.augmentation.jitter_mm == "localiser"


@pytest.mark.parametrize("recipe", [one for one in MEMBERS if one.values[0].member.role == "localiser"])
def test_localisers_of_a_second_wave_train_on_slices_that_are_off_as_well(recipe: MemberRecipe):
    if any(view.slices.by == "landmark" for view in recipe.member.inputs):
        assert recipe.fitting.augmentation.slice_jitter == "localiser"
    if any(view.marks for view in recipe.member.inputs):
        assert recipe.fitting.augmentation.jitter_mm == "localiser"


def test_the_mean_over_slices_stands_beside_the_median():
    """Of the same crops, and sagittal and axial graders of the canal count alike."""
    median, mean = (FULL[f"slice_experts_{name}_coatnet"] for name in ("spinal", "spinal_mean"))
    assert median.member.inputs == mean.member.inputs
    assert [one.fitting.network.options["pooling"] for one in (median, mean)] == ["median", "mean"]
    for profile in PROFILES:
        graders = load_named("slice_experts", profile).graders
        axial = graders["spinal_axial"].weight["spinal"]
        assert axial == sum(one.weight["spinal"] for name, one in graders.items() if name != "spinal_axial")


@pytest.mark.parametrize("recipe", [one for one in GRADERS if one.values[0].member.name.startswith("slice_trans")])
def test_a_level_of_the_133rd_place_has_as_many_slices_as_lie_near(recipe: MemberRecipe):
    assert all(view.slices.within_mm for view in recipe.member.inputs)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_133rd_places_localiser_of_t2_starts_from_that_of_t1(profile: Profile):
    localisers = load_named("slice_transformer", profile).localisers
    starts = {name: one.fitting.start for name, one in localisers.items()}
    assert starts == {"sagittal_t1": None, "sagittal_t2": "sagittal_t1", "axial_t2": None}


@pytest.mark.parametrize("recipe", GRADERS)
def test_axial_slices_of_the_9th_and_the_133rd_place_are_those_nearest_to_the_canal(recipe: MemberRecipe):
    """As for their localisers, whose points lie on these slices."""
    farthest_mm = {"split_and_global": 5.0, "slice_transformer": 10.0}
    system = next((name for name in farthest_mm if recipe.member.name.startswith(name)), None)
    for view in recipe.member.inputs:
        if view.series == "axial_t2" and system:
            assert view.slices.near == ("spinal_canal_stenosis",)
            assert view.slices.max_distance_mm == farthest_mm[system]


def test_axial_crops_are_as_large_as_published():
    """64 of 512 pixels, or 15 %, of an image of 182 mm; 128 of the 7th place's regions."""
    sizes = {
        name: {view.size_mm for view in one.member.inputs if view.series == "axial_t2"}
        for name, one in FULL.items()
        if one.member.role == "grader"
    }
    for name, expected in {
        "level_sequence_conditions_convnext_tiny": 23,
        "slice_transformer_spinal_axial_resnet18": 23,
        "slice_transformer_subarticular_resnet18": 23,
        "slice_experts_spinal_axial_coatnet": 27,
        "slice_experts_subarticular_coatnet": 27,
        "slice_experts_subarticular_pool_coatnet_pool": 27,
        "slice_experts_all_coatnet": 27,
        "view_fusion_subarticular_rois_convnext_tiny": 45.5,
    }.items():
        assert sizes[name] == {expected}, name


def test_sagittal_regions_of_the_seventh_place_are_of_75_mm():
    for name in ("spinal_rois", "foraminal_rois", "subarticular_rois"):
        inputs = FULL[f"view_fusion_{name}_convnext_tiny"].member.inputs
        assert {view.size_mm for view in inputs if view.series != "axial_t2"} == {75}


def test_crops_of_the_first_place_are_as_asymmetric_as_published():
    """Pixels left, right, above and below of the point, on images of 320 and 182 mm with 512 pixels."""
    published = {"canal": (96, 32, 40, 40), "foramen": (96, 64, 32, 32), "recess": (48, 144, 96, 96)}
    for name, (left, right, above, below) in published.items():
        view = FULL[f"first_place_{name}_convnext_small"].member.inputs[0]
        pixel_mm = (182 if view.series == "axial_t2" else 320) / 512
        middle_mm = view.shift_mm(Unit("l3_l4", "left"))
        assert middle_mm == pytest.approx(((right - left) / 2 * pixel_mm, (below - above) / 2 * pixel_mm), abs=0.1)
        assert view.size_mm == pytest.approx(max(left + right, above + below) * pixel_mm, abs=0.5)


def test_the_first_place_trains_its_encoders_as_long_as_published():
    epochs = {"convnext_small": 7, "effnetv2_s": 14}
    for name, one in FULL.items():
        if name.startswith("first_place_") and one.member.role == "grader":
            (encoder,) = (encoder for encoder in epochs if name.endswith(encoder))
            assert one.fitting.optimisation.epochs == epochs[encoder]


def test_the_third_place_has_one_network_for_all_levels_and_both_sides():
    for name, one in FULL.items():
        if name.startswith("third_place_") and one.member.role == "grader":
            assert len(one.member.targets) == 1
            sided = "canal" not in name
            assert one.member.unit == ("level_side" if sided else "level")
            assert all(view.mirror_right == sided for view in one.member.inputs)


@pytest.mark.parametrize("name", [name for name, one in FULL.items() if one.member.role == "grader"])
def test_every_backbone_of_the_published_size_starts_from_published_weights(name: str):
    backbone = FULL[name].backbone
    assert backbone is not None and backbone.pretrained and not backbone.timm.startswith("csn")


# What a training step keeps for the backward pass in half precision, GiB a sample (measured on phantoms).
GIB_A_SAMPLE = {
    "view_fusion_axial_levels": 44 / 8,
    "view_fusion_sagittal_t2_volume": 14 / 8,
    "view_fusion_sagittal_t1_volume": 14 / 8,
    "view_fusion_axial_volume": 14 / 4,
    "view_fusion_axial_points": 10 / 16,
    "slice_experts_axial_levels": 19 / 16,
    "level_sequence_conditions_pvt_v2_b3": 17.4 / 4,
    "level_sequence_conditions_convnext_small": 14.1 / 4,
    "split_and_global_global_swin_tiny": 26.2 / 16,
}


@pytest.mark.parametrize("name", GIB_A_SAMPLE)
def test_the_batches_of_large_networks_fit_a_gpu_of_16_gb_in_parts(name: str):
    optimisation = FULL[name].fitting.optimisation
    assert optimisation.batch_size % optimisation.accumulate == 0
    assert GIB_A_SAMPLE[name] * optimisation.batch_size / optimisation.accumulate <= 12
    (system,) = (one for one in NAMES if name.startswith(f"{one}_"))
    stage, _ = load_named(system, "full").place_of(name)
    for profile in ("smoke", "bench"):
        small = load_named(system, profile)
        its = [one for one in small.members() if small.place_of(one.member.name)[0] == stage]
        assert its and {one.fitting.optimisation.accumulate for one in its} == {1}, "small batches need no parts"


@pytest.mark.parametrize("recipe", MEMBERS)
def test_no_epoch_is_chosen_on_the_studies_of_the_score(recipe: MemberRecipe):
    second = recipe.fitting.second_step
    kept = {recipe.fitting.optimisation.keep, *([second.optimisation.keep] if second else [])}
    assert kept == {"last"}


@pytest.mark.parametrize("recipe", GRADERS)
def test_graders_of_both_sides_are_mirrored_in_training_and_at_test_time(recipe: MemberRecipe):
    """A mirrored study then gets mirrored answers; networks of one side see both as left ones."""
    if not all(view.mirror_right for view in recipe.member.inputs):
        assert "mirror" in recipe.member.tta
        assert recipe.fitting.augmentation.mirror


def test_networks_that_need_no_mirror_have_no_flip_that_the_write_ups_do_not_name():
    for name, one in FULL.items():
        if name.startswith(("slice_experts", "level_sequence", "split_and_global")):
            needs_none = one.member.role == "localiser" or all(view.mirror_right for view in one.member.inputs)
            assert one.member.tta == (() if needs_none else ("mirror",)), name
    assert FULL["view_fusion_foraminal_rois_convnext_tiny"].member.tta == ("front_to_back",)


# What does not fit together is refused by its path.


@pytest.fixture
def document() -> dict[str, Any]:
    return json.loads(json.dumps(yaml.safe_load((RECIPES / "split_and_global.yaml").read_text())))


def load(document: dict[str, Any], folder: Path) -> None:
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in document.items() if key != "profiles"}))
    load_recipe(path)


@pytest.mark.parametrize("change", ["brightness", "contrast"])
def test_grey_changes_that_the_z_score_takes_away_are_refused(document, tmp_path, change):
    document["graders"]["spinal"]["fitting"]["augmentation"][change] = 0.2
    with pytest.raises(RecipeError, match=rf"graders\.spinal\.fitting\.augmentation\.{change}: is undone by the norm"):
        load(document, tmp_path)
    for view in document["graders"]["spinal"]["inputs"]:
        view["normalisation"] = "unit"
    load(document, tmp_path)


@pytest.mark.parametrize(
    ("flip", "changes", "good"),
    [
        ("mirror", {}, False),
        ("mirror", {"mirror": 0.5}, True),
        ("mirror", {"dihedral": 0.5}, False),
        ("front_to_back", {"mirror": 0.5}, False),
        ("front_to_back", {"front_to_back": 0.5}, True),
        ("front_to_back", {"dihedral": 0.5}, True),
    ],
)
def test_flips_at_test_time_that_are_not_trained_are_refused(document, tmp_path, flip, changes, good):
    spinal = document["graders"]["spinal"]
    spinal["tta"] = [flip]
    spinal["fitting"]["augmentation"] |= {"mirror": 0.0} | changes
    if good:
        load(document, tmp_path)
        return
    with pytest.raises(RecipeError, match=rf"graders\.spinal\.tta: {flip} is not trained: set fitting\.augmentation"):
        load(document, tmp_path)


def test_a_dihedral_change_trains_the_mirror_of_axial_views(document, tmp_path):
    spinal = document["graders"]["spinal"]
    spinal["tta"], spinal["inputs"] = ["mirror"], spinal["inputs"][1:]
    spinal["fitting"]["augmentation"]["dihedral"] = 0.5
    load(document, tmp_path)


def test_a_side_that_is_shown_half_mirrored_is_refused(document, tmp_path):
    """As the 7th place's subarticular network was: the recess as a left one, the canal as it is."""
    sided = document["graders"]["subarticular"]
    sided["inputs"].append({**sided["inputs"][0], "series": "sagittal_t2", "mirror_right": False})
    with pytest.raises(RecipeError, match=r"graders\.subarticular\.inputs: mirror_right is set for some views only"):
        load(document, tmp_path)


@pytest.mark.parametrize("value", [-1, 5, "localizer", 0.5])
def test_other_slice_jitters_are_refused(document, tmp_path, value):
    document["graders"]["spinal"]["fitting"]["augmentation"]["slice_jitter"] = value
    with pytest.raises(RecipeError, match=r"graders\.spinal\.fitting\.augmentation\.slice_jitter"):
        load(document, tmp_path)
