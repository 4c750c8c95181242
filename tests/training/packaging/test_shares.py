"""Shares of recipes and views without a search: those of the published systems, whatever the number of networks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kernels.lumbar.answers.ensemble import softmax
from kernels.lumbar.labels import GROUPS, ROWS, group_of
from kernels.lumbar.manifest import Artefact, Route
from kernels.profiles import PROFILES
from tests.support.networks.combined import combined
from training.data.out_of_fold import Answers
from training.ensemble.sources import recipe_weights_of
from training.ensemble.strategies import side_by_side
from training.packaging.packs import routes_of
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import MemberRecipe, Recipe
from training.runs import TrainedMember

NAMES = ("level_sequence", "slice_experts", "slice_transformer", "split_and_global", "view_fusion")


def unexported(recipe: Recipe, folds: range) -> list[TrainedMember]:
    """Every network of a recipe in some folds, of which there is nothing but names."""

    def run(entry: MemberRecipe, fold: int) -> TrainedMember:
        member = entry.member.model_copy(update={"name": entry.name_in(fold)})
        return TrainedMember(entry, Artefact.model_construct(member=member), Path())

    return [run(one, fold) for fold in folds for one in recipe.members() if one.is_trained_in(fold)]


@pytest.fixture(scope="module")
def recipes() -> dict[str, Recipe]:
    return {name: load_named(name, "full") for name in NAMES}


@pytest.fixture(scope="module")
def runs(recipes: dict[str, Recipe]) -> dict[str, list[TrainedMember]]:
    # Of one of them two folds only: it has as much to say.
    return {name: unexported(one, range(2 if name == "view_fusion" else one.folds)) for name, one in recipes.items()}


def shares_of(routes: tuple[Route, ...], runs: dict[str, list[TrainedMember]]) -> Counter[tuple[str, str]]:
    """(recipe, group) → sum of the weights of networks that grade the group."""
    known = {run.artefact.member.name: (name, run.recipe.member) for name, its in runs.items() for run in its}
    found: Counter[tuple[str, str]] = Counter()
    for route in routes:
        for part in route.graders:
            recipe, member = known[part.name]
            for group in member.groups:
                found[recipe, group] += route.weight * part.weight.get(group, 0.0)  # type: ignore[assignment]
    return found


@pytest.mark.parametrize("locate", ["own", "together", "apart"])
def test_recipes_have_equal_shares_of_each_condition(
    recipes: dict[str, Recipe], runs: dict[str, list[TrainedMember]], locate: str
) -> None:
    shares = shares_of(routes_of(runs, locate, recipes), runs)  # type: ignore[arg-type]
    assert set(shares) == {(name, group) for name in NAMES for group in GROUPS}
    np.testing.assert_allclose(list(shares.values()), 1)
    counts = {name: sum(run.recipe.member.role == "grader" for run in its) for name, its in runs.items()}
    assert max(counts.values()) >= 3 * min(counts.values())


def test_a_recipe_alone_keeps_the_weights_of_its_file(runs: dict[str, list[TrainedMember]]) -> None:
    (route,) = routes_of({"view_fusion": runs["view_fusion"]}, "own")
    weights = {run.artefact.member.name: run.recipe.weight for run in runs["view_fusion"]}
    assert all(part.weight == weights[part.name] for part in route.graders)


def test_within_a_recipe_weights_keep_their_proportions(runs: dict[str, list[TrainedMember]]) -> None:
    routes = {route.name: route for route in routes_of(runs, "own")}
    weights = {run.artefact.member.name: run.recipe.weight for run in runs["view_fusion"]}
    parts = [part for part in routes["view_fusion"].graders if part.weight["spinal"] > 0]
    ratios = [part.weight["spinal"] / weights[part.name]["spinal"] for part in parts]
    np.testing.assert_allclose(ratios, ratios[0])


def test_the_search_weighs_recipes_side_by_side_as_a_package_does(recipes: dict[str, Recipe]) -> None:
    runs = {name: unexported(one, range(one.folds)) for name, one in recipes.items()}
    members = {
        f"{name}/{run.recipe.pooled_as}": run.recipe.member
        for name, its in runs.items()
        for run in its
        if run.recipe.member.role == "grader"
    }
    logits = np.full((len(members), 1, len(ROWS), 3), np.nan)
    for at, member in enumerate(members.values()):
        logits[at, :, [group_of(row) in member.groups for row in ROWS]] = 0
    answers = Answers(tuple(members), ("s",), np.zeros(1, int), np.zeros((1, 25), int), logits)
    searched = side_by_side(answers, [recipe_weights_of(one) for one in recipes.values()], "logits")
    models = {run.artefact.member.name: f"{name}/{run.recipe.pooled_as}" for name, its in runs.items() for run in its}
    packed: Counter[tuple[str, str]] = Counter()
    for route in routes_of(runs, "own", recipes):
        for part in route.graders:
            for group, weight in part.weight.items():
                packed[models[part.name], group] += weight  # type: ignore[assignment]
    for name, weights in zip(searched.members, searched.weights, strict=True):
        np.testing.assert_allclose([packed[name, group] for group in GROUPS], weights, atol=1e-12)


def sees_axial_alone(entry: MemberRecipe) -> bool:
    return {view.series for view in entry.member.inputs} == {"axial_t2"}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_second_place_averages_sagittal_and_axial_canal_equally(profile: str) -> None:
    """ "Average with sagittal; if no axial level, just sagittal"."""
    recipe = load_named("slice_experts", profile)  # type: ignore[arg-type]
    for fold in recipe.train_folds or range(recipe.folds):
        graders = [one for one in recipe.members() if one.member.role == "grader" and one.is_trained_in(fold)]
        canal = [one for one in graders if one.weight["spinal"] > 0 and "spinal" in one.member.groups]
        axial = [one for one in canal if sees_axial_alone(one)]
        assert axial and sum(one.weight["spinal"] for one in axial) == pytest.approx(
            sum(one.weight["spinal"] for one in canal if one not in axial)
        )
        said = {True: np.array([2.0, 0.0, -1.0]), False: np.array([-1.0, 0.5, 1.5])}
        rows = [row for row in ROWS if group_of(row) == "spinal"]
        both = [(one.weight, dict.fromkeys(rows, said[sees_axial_alone(one)])) for one in canal]
        mixed, _ = combined(both, recipe.average)  # type: ignore[arg-type]
        np.testing.assert_allclose(mixed[-1], (softmax(said[True]) + softmax(said[False])) / 2)
        sagittal = [(one.weight, its) for one, (_, its) in zip(canal, both, strict=True) if not sees_axial_alone(one)]
        alone, _ = combined(sagittal, recipe.average)  # type: ignore[arg-type]
        np.testing.assert_allclose(alone[-1], softmax(said[False]))
