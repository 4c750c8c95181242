"""Every recipe in the repository loads in every profile, and what is wrong in one is named by its path."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from kernels.lumbar.labels import GROUPS, LEVELS, UNITS, row_of
from kernels.profiles import Profile
from tests.support import ROOT
from training.recipe_schema.load import load_named, load_recipe, merge, names_of
from training.recipe_schema.schema import Recipe, RecipeError, RouteRecipe
from training.recipe_schema.shorthand import expand_targets, expand_views
from training.runs import RunFolder

FOLDER = ROOT / "training" / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
# Whole systems: what is trained where none is named.
SYSTEMS = sorted(FOLDER.glob("*.yaml"))
PROFILES = get_args(Profile)


def stem(path: Path) -> str:
    return path.stem


@pytest.fixture
def document() -> dict[str, Any]:
    # By way of JSON, which has no anchors: a change to one place must not show in another.
    return json.loads(json.dumps(yaml.safe_load((FOLDER / "split_and_global.yaml").read_text())))


def load(document: dict[str, Any], folder: Path, profile: Profile = "full") -> Recipe:
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(document))
    return load_recipe(path, profile)


def put(document: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A deep copy of a document with one value set."""
    changed = copy.deepcopy(document)
    *parents, last = [int(part) if part.isdigit() else part for part in dotted.split(".")]
    place: Any = changed
    for part in parents:
        place = place[part]
    place[last] = value
    return changed


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_recipe_loads_in_every_profile(path, profile):
    recipe = load_recipe(path, profile)
    assert recipe.name == path.stem
    assert recipe.profile == profile
    members = recipe.members()
    names = [entry.member.name for entry in members]
    assert len(set(names)) == len(names)
    assert "localiser" in {entry.member.role for entry in members}
    if recipe.train_folds is not None:
        assert set(recipe.train_folds) <= set(range(recipe.folds))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", SYSTEMS, ids=stem)
def test_every_condition_is_graded(path, profile):
    recipe = load_recipe(path, profile)
    if not recipe.graders:
        pytest.skip("a recipe of localisers")
    weights = [entry.weight for entry in recipe.members() if entry.member.role == "grader"]
    for group in GROUPS:
        assert sum(weight.get(group, 0.0) for weight in weights) > 0


@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_every_landmark_that_a_view_needs_is_found_by_a_localiser(path):
    members = [entry.member for entry in load_recipe(path).members()]
    found = {
        row_of(target, unit)
        for member in members
        if member.role == "localiser"
        for unit in UNITS[member.unit]
        for target in member.targets
    }
    for member in members:
        for unit in UNITS[member.unit]:
            for request in member.inputs:
                assert set(request.landmarks(unit)) <= found, f"{member.name} looks at what nothing finds"


@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_recipe_opens_with_its_commands(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    header = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    assert any("make train-all" in line and f"RECIPES={path.stem}" in line for line in header)


@pytest.mark.parametrize(
    ("dotted", "value"),
    [
        ("folds_", 5),
        ("graders.spinal.fitting.optimisation.epoch", 5),
        ("graders.spinal.inputs.0.slices.counts", 5),
        ("localisers.sagittal_t2.fitting.augmentation.rotate", 15),
        ("backbones.resnet18.size", 128),
    ],
)
def test_unknown_key_is_refused_with_its_path(document, tmp_path, dotted, value):
    with pytest.raises(RecipeError) as refused:
        load(put(document, dotted, value), tmp_path)
    assert dotted in str(refused.value) and "changed.yaml" in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, "many", None])
@pytest.mark.parametrize(
    "dotted",
    [
        "graders.spinal.fitting.optimisation.learning_rate",
        "graders.spinal.fitting.augmentation.rotate_deg",
        "graders.spinal.inputs.0.size_mm",
        "graders.spinal.weight.spinal",
        "localisers.sagittal_t2.fitting.sigma_px",
        "backbones.resnet18.learning_rate",
    ],
)
def test_numbers_that_are_none_are_refused(document, tmp_path, dotted, value):
    with pytest.raises(RecipeError):
        load(put(document, dotted, value), tmp_path)


def test_unknown_names_are_refused(document, tmp_path):
    for dotted, value in (
        ("graders.spinal.targets", ["spinal_canal_stenosis_l6"]),
        ("graders.spinal.inputs.0.series", "coronal_t1"),
        ("average", "median"),
    ):
        with pytest.raises(RecipeError):
            load(put(document, dotted, value), tmp_path)


@pytest.mark.parametrize(
    ("dotted", "value", "sentence"),
    [
        (
            "graders.spinal.weight",
            {"spinal": 0, "foraminal": 0, "subarticular": 0},
            "is 0 for all that it grades (spinal)",
        ),
        ("graders.spinal.weight", {"foraminal": 1}, "is 0 for all that it grades (spinal)"),
        ("graders.spinal.weight", {}, "is 0 for all that it grades (spinal)"),
        ("backbones.resnet18.folds", [9], "the recipe has folds 0 to 4, and 9 is none of them"),
        ("localisers.sagittal_t2.packed_folds", [0, 5], "the recipe has folds 0 to 4, and 5 is none of them"),
        ("train_folds", [-1], "the recipe has folds 0 to 4, and -1 is none of them"),
        ("graders.spinal.backbones", ["resnet81"], "there is no backbone 'resnet81'; there are: "),
        ("localisers.sagittal_t2.fitting.augmentation.cutmix", 0.5, "is for graders: points would not follow"),
        ("graders.global.targets", [5], "should be a valid string"),
    ],
)
def test_values_that_do_not_fit_the_rest_are_refused_with_their_path(document, tmp_path, dotted, value, sentence):
    with pytest.raises(RecipeError) as refused:
        load(put(document, dotted, value), tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'changed.yaml'}: {dotted}")
    assert sentence in str(refused.value) and "Value error" not in str(refused.value)


def test_what_a_whole_stage_gets_wrong_is_named_by_its_path(document, tmp_path):
    document["graders"]["spinal"]["inputs"][0]["of_level"] = "l4_l5"
    with pytest.raises(RecipeError, match=r"changed.yaml: graders\.spinal: of_level is for units that hold several"):
        load(document, tmp_path)


def test_two_backbones_of_one_model_in_a_fold_are_refused(document, tmp_path):
    for name in list(document["backbones"])[:2]:
        document["backbones"][name]["folds"] = [0, 1]
    with pytest.raises(RecipeError, match=r"graders\.\w+\.backbones: 2 of them are for fold 0"):
        load(document, tmp_path)


def test_networks_of_one_name_are_refused(document, tmp_path):
    backbone, spinal = document["backbones"]["resnet18"], document["graders"]["spinal"]
    document["backbones"] = {"b": backbone, "a_b": backbone}
    document["graders"] = {"s": spinal | {"backbones": ["a_b"]}, "s_a": spinal | {"backbones": ["b"]}}
    with pytest.raises(
        RecipeError, match=r"graders\.s_a: its network is named split_and_global_s_a_b, as that of graders\.s is"
    ):
        load({key: value for key, value in document.items() if key != "profiles"}, tmp_path)


@pytest.mark.parametrize(("wrong", "last"), [(2, "wrong_1: there is no such key"), (7, "and 2 more")])
def test_several_problems_are_shown_a_line_each(document, tmp_path, wrong, last):
    with pytest.raises(RecipeError) as refused:
        load(document | {f"wrong_{number}": 1 for number in range(wrong)}, tmp_path)
    lines = str(refused.value).splitlines()
    assert lines[0].endswith(f"changed.yaml has {wrong} problems:") and lines[-1] == f"  {last}"
    assert lines[1] == "  wrong_0: there is no such key" and len(lines) <= 7


@pytest.mark.parametrize("profiles", [["smoke"], {"smoke": "small"}])
def test_profiles_that_are_no_mapping_are_refused(document, tmp_path, profiles):
    with pytest.raises(RecipeError, match="profiles: is a mapping"):
        load(document | {"profiles": profiles}, tmp_path, "smoke")


def test_a_recipe_of_ones_own_is_named_by_its_file(document, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(document | {"name": "mine"}))
    recipe = load_named(str(path), "smoke")
    assert recipe.name == "mine" and recipe.members()[0].member.name.startswith("mine_")
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(
        RecipeError, match=r"mine.yaml: name: is 'split_and_global', and must be that of the file, 'mine'"
    ):
        load_named(str(path), "smoke")
    with pytest.raises(RecipeError, match=r"no recipe '.*yours.yaml'.* path of its .yaml file"):
        load_named(str(tmp_path / "yours.yaml"), "smoke")


def test_recipes_are_named_with_spaces_or_commas_between(tmp_path):
    assert names_of(["a", "b"]) == names_of(["a,b"]) == names_of(["a, b"]) == names_of(["a,", "b"]) == ["a", "b"]
    assert names_of([]) == names_of([" "]) == [path.stem for path in SYSTEMS]
    (tmp_path / "my own.yaml").touch()
    assert names_of([str(tmp_path / "my own.yaml")]) == [str(tmp_path / "my own.yaml")]


def test_a_recipe_of_a_part_is_named_like_the_others():
    partial = [path for path in RECIPES if path not in SYSTEMS]
    assert [path.stem for path in partial] == ["canal_only", "student"]
    for path in partial:
        assert load_named(path.stem, "smoke") == load_recipe(path, "smoke") and path.stem not in names_of([])


@pytest.mark.parametrize("profile", PROFILES)
def test_the_canals_localiser_may_begin_from_the_whole_systems(profile):
    own, whole = (load_named(name, profile).localiser("sagittal_t2") for name in ("canal_only", "split_and_global"))
    assert own.fitting.network == whole.fitting.network
    views = [[one.model_copy(update={"size_px": 64}) for one in its.member.inputs] for its in (own, whole)]
    assert views[0] == views[1] and own.member.targets == whole.member.targets


@pytest.mark.parametrize("profile", PROFILES)
def test_the_students_localisers_are_the_whole_systems_own(profile, tmp_path):
    student, owner = (load_named(name, profile) for name in ("student", "split_and_global"))
    shared = [one for one in student.members() if one.member.role == "localiser"]
    assert shared == [owner.localiser(name) for name in owner.localisers]
    folders = [RunFolder(tmp_path, one) for one in (student, owner)]
    for one in shared:
        own, other = (folder.network_folder(one.member.name, 1) for folder in folders)
        assert own == other and own.is_relative_to(folders[1].profile)
        assert student.owner_of(one.member.name) == "split_and_global"
        assert student.packed_folds(one.member.name) == owner.packed_folds(one.member.name)
    (grader,) = [one for one in student.members() if one.member.role == "grader"]
    assert folders[0].network_folder(grader.member.name, 1).is_relative_to(folders[0].profile)
    assert grader.member.inputs[0].model_copy(update={"size_px": 64}) in [
        view.model_copy(update={"size_px": 64}) for one in owner.members() for view in one.member.inputs
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"localisers_of": "nobody"}, "there is no recipe 'nobody'"),
        ({"localisers_of": "student"}, "localisers_of: student has none of its own: name split_and_global"),
        ({"seed": 7}, "seed: is 42 in split_and_global, whose localisers these are"),
        ({"folds": 3}, "folds: is 5 in split_and_global"),
        ({"localisers": {"canal": {}}}, r"localisers: are those of split_and_global \(localisers_of\): leave them out"),
    ],
)
def test_localisers_that_cannot_be_shared_are_refused(change, reason, tmp_path):
    document = yaml.safe_load((FOLDER / "partial" / "student.yaml").read_text())
    with pytest.raises(RecipeError, match=reason):
        load(document | change, tmp_path, "smoke")


@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_every_network_is_found_in_its_recipe(path):
    recipe = load_recipe(path)
    for entry in recipe.members():
        stage, backbone = recipe.place_of(entry.member.name)
        role, name = stage.split(".")
        assert getattr(recipe, role)[name].fitting.network == entry.fitting.network
        assert (recipe.backbones[backbone.split(".")[1]] if backbone else None) == entry.backbone


def test_profile_that_a_recipe_lacks_is_named(document, tmp_path):
    del document["profiles"]["smoke"]
    with pytest.raises(RecipeError, match="smoke"):
        load(document, tmp_path, "smoke")


@pytest.mark.parametrize("text", ["", "- a\n- b", "name: [", "name: x"])
def test_file_that_is_no_recipe_is_refused(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"broken\.yaml"):
        load_recipe(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")


def test_merge_changes_adds_removes_and_leaves_its_arguments_alone():
    base = {"a": 1, "b": {"c": 2, "d": 3}}
    assert merge(base, {"b": {"c": None, "e": 5}, "f": 6}) == {"a": 1, "b": {"d": 3, "e": 5}, "f": 6}
    assert base == {"a": 1, "b": {"c": 2, "d": 3}}


def test_smoke_is_smaller_than_full(document, tmp_path):
    full, smoke = (load(document, tmp_path, profile) for profile in ("full", "smoke"))
    assert len(smoke.members()) < len(full.members())


def test_views_and_targets_of_each_level_and_side_are_written_once():
    views = expand_views([{"each": "level_side", "series": "axial_t2"}, {"series": "sagittal_t2", "of_level": "l1_l2"}])
    assert len(views) == 11 and views[-1] == {"series": "sagittal_t2", "of_level": "l1_l2"}
    assert [view["of_side"] for view in views[:10]] == ["left"] * 5 + ["right"] * 5
    assert [view["of_level"] for view in views[:5]] == list(LEVELS)
    targets = expand_targets("study", ["subarticular_stenosis"])
    assert targets == tuple(f"{side}_subarticular_stenosis_{level}" for side in ("left", "right") for level in LEVELS)
    assert expand_targets("level_side", ["subarticular_stenosis"]) == ("subarticular_stenosis",)
    assert expand_targets("side", ["neural_foraminal_narrowing"])[0] == "neural_foraminal_narrowing_l1_l2"
    assert expand_targets("level", ["spinal_canal_stenosis"]) == ("spinal_canal_stenosis",)
    with pytest.raises(ValueError, match="each is level, side, level_side, not 'slice'"):
        expand_views([{"each": "slice"}])


def test_one_backbone_a_fold_makes_one_model():
    recipe = load_named("slice_experts", "full")
    spinal = [one for one in recipe.members() if one.member.name.startswith("slice_experts_spinal_all_slices_")]
    assert {one.pooled_as for one in spinal} == {"slice_experts_spinal_all_slices"}
    for fold in range(5):
        trained = [one.member.name for one in recipe.members() if one.is_trained_in(fold) and one.model]
        models = [one.model for one in recipe.members() if one.is_trained_in(fold) and one.model]
        assert len(models) == len(set(models)), f"two networks of one model in fold {fold}: {trained}"
        assert set(models) == {one.model for one in recipe.members() if one.model}, f"fold {fold} lacks a model"


@pytest.mark.parametrize(
    ("grader", "sentence"),
    [
        ("fitting: {augmentation: {dihedral: 0.5}}", "fitting.augmentation.dihedral: exchanges left and right"),
        ("fitting: {loss: competition}", "fitting.loss: needs all levels of a study: set fitting.opt.*whole_studies"),
        (
            "fitting: {second_step: {parts: [heads], loss: competition, optimisation: {epochs: 1, learning_rate: 1}}}",
            "fitting.second_step.loss: needs all levels of a study",
        ),
    ],
)
def test_changes_that_labels_do_not_bear_are_refused(document, tmp_path, grader, sentence):
    document["graders"]["global"] = merge(document["graders"]["global"], yaml.safe_load(grader))
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(RecipeError, match=rf"one.yaml: graders\.global\.{sentence}"):
        load_recipe(tmp_path / "one.yaml")


def test_the_blend_of_the_seventh_places_two_models_is_as_published():
    weights = {name: grader.weight for name, grader in load_named("view_fusion", "full").graders.items()}
    fusion = weights.pop("fusion")
    assert fusion == {"spinal": 0.5896, "foraminal": 0.09, "subarticular": 0.38}
    for group, share in fusion.items():
        assert share + sum(its[group] for its in weights.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("route", "sentence"),
    [
        ({"localisers": ["sagittal_t9"], "graders": ["spinal"]}, "routes.one.localisers: 'sagittal_t9' is none of"),
        ({"localisers": ["sagittal_t2"], "graders": ["spine"]}, "routes.one.graders: 'spine' is none of the recipe's"),
        ({"localisers": [], "graders": ["spinal"]}, "routes.one.localisers: Tuple should have at least 1 item"),
        ({"localisers": ["sagittal_t2"]}, "routes.one.graders: is missing"),
        (
            {"localisers": ["sagittal_t2"], "graders": ["foraminal"]},
            "routes.one: foraminal starts from left_neural_foraminal_narrowing_l1_l2, which none of its localisers",
        ),
    ],
)
def test_routes_that_cannot_be_run_are_refused(document, tmp_path, route, sentence):
    with pytest.raises(RecipeError) as refused:
        load(document | {"routes": {"one": route}}, tmp_path)
    assert sentence in str(refused.value)


def test_a_recipe_says_in_which_routes_a_network_takes_part(document, tmp_path):
    route = {"localisers": list(document["localisers"]), "graders": ["spinal"]}
    recipe = load(document | {"routes": {"one": route, "two": route}}, tmp_path)
    part = RouteRecipe(localisers=("sagittal_t2",), graders=("spinal",))
    recipe = recipe.model_copy(update={"routes": {"one": part, "two": part}})
    backbone = recipe.backbones_of("spinal")[0]
    assert recipe.routes_of(f"{recipe.name}_spinal_{backbone}") == ("one", "two")
    assert recipe.routes_of(f"{recipe.name}_foraminal_{backbone}") == ("",)
    assert recipe.routes_of(f"{recipe.name}_sagittal_t2") == ("", "one", "two")
    assert recipe.routes_of(f"{recipe.name}_axial_t2") == ("",)
