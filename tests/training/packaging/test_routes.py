"""Routes within a recipe: which graders are run at whose landmarks, what each counts, and that answers are averaged."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import build_dataset
from kernels.lumbar.answers.ensemble import softmax
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.labels import GROUPS, ROWS
from kernels.lumbar.manifest import Manifest, Route
from kernels.lumbar.networks.devices import default_device
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.specs import ViewRequest
from kernels.profiles import PROFILES
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.networks.tiny_runs import write_runs
from tests.training.packaging.test_shares import unexported
from training.evaluation.predictor import Prediction, Predictor, mean_of
from training.evaluation.show import open_study
from training.evaluation.validate import fold_manifest, seconds_of
from training.packaging import packs
from training.packaging.ensemble_weights import FoundEnsemble, weighted
from training.packaging.packs import collect
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import Recipe, RouteRecipe
from training.runs import RunFolder, TrainedMember, UnusableRun, routes_of

MEDIAN = "sagittal_t2"


def routed(recipe: Recipe) -> Recipe:
    """Two routes, the second with one localiser, so that the shape model imputes the other landmarks there.

    The first grader is run in both, the second in the second, the others at the landmarks of all.
    """
    graders = list(recipe.graders)
    routes = {
        "whole": RouteRecipe(localisers=tuple(recipe.localisers), graders=(graders[0],)),
        "part": RouteRecipe(localisers=(MEDIAN,), graders=tuple(graders[:2])),
    }
    # The networks of tiny_runs see the means of views, which a z-score makes 0.
    changed = {
        name: one.model_copy(update={"inputs": tuple(map(as_greys, one.inputs))})
        for name, one in recipe.graders.items()
    }
    return recipe.model_copy(update={"routes": routes, "graders": changed})


def as_greys(view: ViewRequest) -> ViewRequest:
    return view.model_copy(update={"normalisation": "unit"})


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return routed(load_named("split_and_global", "smoke"))


@pytest.fixture(scope="module")
def runs(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_runs(folder, recipe)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("data")
    truth = write_foreign_dataset(root, studies=1, seed=4, test_studies=0)
    return open_study(root, truth.train[0])[1]


@pytest.fixture(scope="module")
def manifest(recipe: Recipe, runs: Path) -> Manifest:
    return fold_manifest(RunFolder(runs, recipe), recipe.members(), 0)


def predicted(manifest: Manifest, recipe: Recipe, runs: Path, study: Study) -> Prediction:
    predictor = Predictor(manifest, RunFolder(runs, recipe).profile, default_device())
    assert not predictor.problems
    return predictor.predict(study, Clock(float("inf")))


def run_names(recipe: Recipe, grader: str) -> list[str]:
    return [f"{recipe.name}_{grader}_{backbone}_fold0" for backbone in recipe.backbones_of(grader)]


def test_graders_are_run_in_their_routes_and_count_as_much_as_before(recipe: Recipe, manifest: Manifest) -> None:
    name, graders = recipe.name, list(recipe.graders)
    routes = {route.name: route for route in manifest.routes}
    assert list(routes) == [name, f"{name}_at_whole", f"{name}_at_part"]
    assert routes[name].localisers == routes[f"{name}_at_whole"].localisers
    assert routes[f"{name}_at_part"].localisers == (f"{name}_{MEDIAN}_fold0",)
    in_route = {route: [part.name for part in its.graders] for route, its in routes.items()}
    first, second = run_names(recipe, graders[0]), run_names(recipe, graders[1])
    assert in_route[f"{name}_at_whole"] == first and in_route[f"{name}_at_part"] == [*first, *second]
    assert not set(in_route[name]) & {*first, *second} and in_route[name]
    total: Counter[tuple[str, str]] = Counter()
    for route in routes.values():
        for part in route.graders:
            for group, weight in part.weight.items():
                total[part.name, group] += weight  # type: ignore[assignment]
    own = {one.name_in(0): one.weight for one in recipe.members() if one.member.role == "grader"}
    assert all(total[member, group] == own[member].get(group, 0) for member in own for group in GROUPS)


def test_a_recipe_without_routes_has_one_of_all(runs: Path, recipe: Recipe) -> None:
    plain = recipe.model_copy(update={"routes": {}})
    (route,) = fold_manifest(RunFolder(runs, plain), plain.members(), 0).routes
    assert route.name == recipe.name and len(route.localisers) == len(recipe.localisers)
    own = {one.name_in(0): one.weight for one in recipe.members()}
    assert all(part.weight == own[part.name] for part in route.graders)


def test_localisers_alone_make_one_route_of_all(runs: Path, recipe: Recipe) -> None:
    """As errors are measured and pictures drawn."""
    localisers = [one for one in recipe.members() if one.member.role == "localiser"]
    (route,) = fold_manifest(RunFolder(runs, recipe), localisers, 0).routes
    assert route.name == recipe.name and len(route.localisers) == len(localisers)


def test_answers_of_a_grader_are_the_mean_over_its_routes(
    recipe: Recipe, runs: Path, manifest: Manifest, study: Study
) -> None:
    alone = {
        route.name: predicted(manifest.model_copy(update={"routes": (route,)}), recipe, runs, study)
        for route in manifest.routes
    }
    together = predicted(manifest, recipe, runs, study)
    whole, part = (alone[f"{recipe.name}_at_{route}"] for route in ("whole", "part"))
    (grader,) = run_names(recipe, list(recipe.graders)[0])
    assert together.answers[grader].keys() == whole.answers[grader].keys()
    differ = False
    for row, logits in together.answers[grader].items():
        both = [one.answers[grader][row] for one in (whole, part)]
        np.testing.assert_allclose(logits, np.mean(both, 0), atol=1e-12)
        differ |= not np.allclose(*both)
    assert differ
    only = manifest.model_copy(
        update={
            "routes": tuple(
                route.model_copy(update={"graders": tuple(one for one in route.graders if one.name == grader)})
                for route in manifest.routes[1:]
            )
        }
    )
    mixed = predicted(only, recipe, runs, study)
    for at, row in enumerate(ROWS):
        if row in mixed.answers[grader]:
            np.testing.assert_allclose(mixed.rows[at], softmax(mixed.answers[grader][row]), atol=1e-6)


def test_probabilities_are_averaged_as_probabilities() -> None:
    first, second = {"a": np.array([2.0, 0, -1]), "b": np.zeros(3)}, {"a": np.array([-1.0, 1, 0])}
    found = mean_of([first, second], "probabilities")
    np.testing.assert_allclose(softmax(found["a"]), (softmax(first["a"]) + softmax(second["a"])) / 2)
    assert (found["b"] == first["b"]).all()
    np.testing.assert_allclose(mean_of([first, second], "logits")["a"], [0.5, 0.5, -0.5])


def test_a_network_costs_as_often_as_it_is_run(recipe: Recipe, manifest: Manifest) -> None:
    clock = Clock(float("inf"))
    for entry in recipe.members():
        clock.record(entry.name_in(0), 1.0)
    costs = seconds_of(recipe.name, recipe.members(), {0: manifest}, clock)
    passes = {one.pooled_as: one.member.passes for one in recipe.members()}
    graders = [f"{recipe.name}_{grader}_{recipe.backbones_of(grader)[0]}" for grader in recipe.graders]
    times = [costs["members"][name] / passes[name] for name in graders]
    assert times == [2, *[1] * (len(graders) - 1)]
    localisers = [one for one in recipe.members() if one.member.role == "localiser"]
    runs = {f"{recipe.name}_{name}": 3 if name == MEDIAN else 2 for name in recipe.localisers}
    expected = sum(runs[one.member.name] * one.member.passes for one in localisers)
    assert costs["located"][recipe.name] == pytest.approx(expected)


def test_a_package_has_the_recipes_routes(recipe: Recipe, runs: Path, tmp_path: Path, manifest: Manifest) -> None:
    folder = RunFolder(runs, recipe)
    made = build_dataset.build([(folder, collect(folder, [0], False))], tmp_path / "out", "routed", {})
    assert made.routes == manifest.routes


def named(routes: tuple[Route, ...]) -> dict[str, Route]:
    return {route.name: route for route in routes}


def test_apart_runs_graders_once_for_each_route_of_each_recipe(recipe: Recipe) -> None:
    other = load_named("slice_transformer", "smoke")
    runs = {one.name: unexported(one, range(1)) for one in (recipe, other)}
    apart = packs.routes_of(runs, "apart", {one.name: one for one in (recipe, other)})
    finders = [f"{recipe.name}_whole", f"{recipe.name}_part", other.name]
    assert [route.name for route in apart] == [
        f"{grader}_at_{finder}" for grader in (recipe.name, other.name) for finder in finders
    ]
    assert len(named(apart)[f"{other.name}_at_{recipe.name}_part"].localisers) == 1
    own = packs.routes_of(runs, "own", {one.name: one for one in (recipe, other)})
    assert [route.name for route in own] == [
        recipe.name, f"{recipe.name}_at_whole", f"{recipe.name}_at_part", other.name
    ]  # fmt: skip
    for routes in (apart, own):
        for its in runs.values():
            groups = {run.artefact.member.name: run.recipe.member.groups for run in its}
            parts = [part for route in routes for part in route.graders if part.name in groups]
            for group in GROUPS:
                total = sum(part.weight[group] for part in parts if group in groups[part.name])
                assert total == pytest.approx(1)


def test_a_found_weight_is_divided_among_routes_and_folds(recipe: Recipe) -> None:
    runs = {recipe.name: unexported(recipe, range(2))}
    graders = [one for one in recipe.members() if one.member.role == "grader"]
    weights = {f"{recipe.name}/{one.pooled_as}": dict.fromkeys(GROUPS, 0.0) for one in graders}
    for one in graders:
        weights[f"{recipe.name}/{one.pooled_as}"] |= dict.fromkeys(one.member.groups, 0.6)
    found = FoundEnsemble(
        average="logits",
        weights=weights,  # type: ignore[arg-type]
        multipliers=dict.fromkeys(GROUPS, (1, 1, 1)),  # type: ignore[arg-type]
        order=tuple(weights),
    )
    routes = weighted(packs.routes_of(runs, "own", {recipe.name: recipe}), runs, found)
    total: Counter[tuple[str, str]] = Counter()
    for route in routes:
        for part in route.graders:
            for group, weight in part.weight.items():
                total[part.name.rpartition("_fold")[0], group] += weight  # type: ignore[assignment]
    for one in graders:
        for group in GROUPS:
            assert total[one.member.name, group] == pytest.approx(weights[f"{recipe.name}/{one.pooled_as}"][group])


def test_a_route_without_a_finished_localiser_is_refused(recipe: Recipe) -> None:
    def without(run: TrainedMember) -> bool:
        return run.recipe.member.name != f"{recipe.name}_{MEDIAN}"

    its = [run for run in unexported(recipe, range(1)) if without(run)]
    with pytest.raises(UnusableRun, match="no localiser of its route part is finished"):
        routes_of(recipe, [run.artefact for run in its], [run.recipe for run in its])


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["level_sequence", "view_fusion"])
def test_published_routes(name: str, profile: str) -> None:
    """5th place: stage 2 once for each stage 1.  7th place: each model at points of its own."""
    recipe = load_named(name, profile)  # type: ignore[arg-type]
    runs = unexported(recipe, range(1))
    routes = routes_of(recipe, [run.artefact for run in runs], [run.recipe for run in runs])
    members = {one.name_in(0): one for one in recipe.members()}
    if not recipe.routes:
        assert profile != "full" and len(routes) == 1
        return
    located = [one for route in routes for one in route.localisers]
    assert len(set(located)) == len(located), "a localiser answers in one route"
    assert set(located) == {one for one in members if members[one].member.role == "localiser"}
    graders = [{part.name for part in route.graders} for route in routes]
    if name == "level_sequence":
        assert len(routes) == 3 and graders[0] == graders[1] == graders[2]
        shares = [part.weight[group] for route in routes for part in route.graders for group in GROUPS]
        assert shares == pytest.approx([1 / 3] * len(shares))
    else:
        assert len(routes) == 2
        assert not graders[0] & graders[1] and all("fusion_fusion" in one for one in graders[0])
