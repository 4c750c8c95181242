"""Packaging: finished runs become a folder that Kaggle leaves as it is and the kernel can load, or nothing at all."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

import build_dataset
from kernels.build_notebook import OWNER_PLACEHOLDER
from kernels.lumbar import manifest as released
from kernels.lumbar import specs
from kernels.lumbar.labels import GROUPS, ROWS
from kernels.lumbar.manifest import STACKER_CONTEXT, Artefact, Manifest, Shape
from kernels.lumbar.networks.weights import read_manifest
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.results import Results
from kernels.lumbar.run.schedule import Schedule
from tests.support.networks.tiny_runs import write_runs
from training.packaging import packs
from training.packaging.ensemble_weights import FoundEnsemble, read_ensemble, weighted
from training.packaging.packs import collect
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import Recipe
from training.runs import RunFolder


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_named("split_and_global", "smoke")


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    write_runs(runs, recipe)
    return runs


@pytest.fixture
def runs(finished, tmp_path) -> Path:
    """A copy of the finished runs that a test may spoil."""
    return shutil.copytree(finished, tmp_path / "runs")


def package(runs: Path, out: Path, *options: str) -> int:
    return build_dataset.main(
        ["--runs", str(runs), "--out", str(out), "--profile", "smoke", "--owner", "ada", *options]
    )


def first_run(runs: Path, recipe: Recipe) -> Path:
    return RunFolder(runs, recipe).network_folder(recipe.members()[0].member.name, 0)


def test_package_is_complete_and_loads(finished, recipe, tmp_path, capsys):
    out = tmp_path / "deep" / "package"
    assert package(finished, out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["dataset-metadata.json", "manifest.json", "weights-0.bin"]
    manifest = read_manifest(out / "manifest.json")
    assert manifest.name == "split_and_global_smoke" and manifest.average == recipe.average
    entries = recipe.members()
    assert [artefact.member.name for artefact in manifest.artefacts] == [f"{e.member.name}_fold0" for e in entries]
    (route,) = manifest.routes
    assert list(route.localisers) == [f"{e.member.name}_fold0" for e in entries if e.member.role == "localiser"]
    weights = {grader.name: grader.weight for grader in route.graders}
    assert weights == {f"{e.member.name}_fold0": e.weight for e in entries if e.member.role == "grader"}
    printed = capsys.readouterr().out
    assert all(f"{entry.member.name}_fold0" in printed for entry in entries)
    assert list(tmp_path.glob("deep/.*")) == []


def test_what_validation_saw_is_packaged(runs, recipe, tmp_path, capsys):
    assert package(runs, tmp_path / "without") == 0
    manifest = read_manifest(tmp_path / "without" / "manifest.json")
    assert manifest.domain is None and manifest.routes[0].reliability is None
    spread = {"studies": 12, "mean": 50.0, "sd": 9.0}
    domain = {"images": {"axial_t2": {"median": spread}}, "confidence": {}}
    fitted = {"imputed": -4.0, "offset": 2.0}
    place = RunFolder(runs, recipe).domain
    place.write_text(json.dumps({"domain": domain, "reliability": {recipe.name: fitted}}))
    assert package(runs, tmp_path / "with") == 0
    manifest = read_manifest(tmp_path / "with" / "manifest.json")
    assert manifest.domain is not None and manifest.domain.model_dump() == domain
    assert manifest.routes[0].reliability is not None and manifest.routes[0].reliability.model_dump() == fitted
    # Landmarks of several recipes' localisers together are not those that it was fitted to.
    assert package(runs, tmp_path / "together", "--locate", "together") == 0
    assert read_manifest(tmp_path / "together" / "manifest.json").routes[0].reliability is None
    place.write_text(json.dumps({"domain": {"images": 3}, "reliability": {}}))
    assert package(runs, tmp_path / "broken") == 1
    assert capsys.readouterr().err.count("\n") >= 1 and not (tmp_path / "broken").exists()


def test_metadata_name_the_dataset(finished, tmp_path, monkeypatch, capsys):
    assert package(finished, tmp_path / "a", "--slug", "my-weights") == 0
    metadata = json.loads((tmp_path / "a" / "dataset-metadata.json").read_text())
    assert metadata == {"id": "ada/my-weights", "title": "My Weights", "licenses": [{"name": "other"}]}
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)
    given = ["--runs", str(finished), "--out", str(tmp_path / "b"), "--profile", "smoke"]
    assert build_dataset.main(given) == 0
    assert json.loads((tmp_path / "b" / "dataset-metadata.json").read_text())["id"].startswith(OWNER_PLACEHOLDER)
    assert "OWNER=<your Kaggle name>" in capsys.readouterr().out


def test_the_owner_is_the_clients_user_where_none_is_named(finished, kaggle, tmp_path, monkeypatch, capsys):
    for name, value in kaggle.environment(tmp_path / "scratch", with_token=True).items():
        monkeypatch.setenv(name, value)
    assert package(finished, tmp_path / "a", "--owner", OWNER_PLACEHOLDER) == 0
    assert json.loads((tmp_path / "a" / "dataset-metadata.json").read_text())["id"] == "ann/lumbar-weights"
    assert "they are ann's, the user of the Kaggle client" in capsys.readouterr().out


@pytest.mark.parametrize("option", [("--slug", "no_slug"), ("--slug", "short"), ("--owner", "a b")])
def test_names_that_kaggle_refuses_are_refused(finished, tmp_path, capsys, option):
    assert package(finished, tmp_path / "out", *option) == 1
    assert capsys.readouterr().err.startswith("build_dataset: ")
    assert not (tmp_path / "out").exists()


def test_packs_are_no_archives_and_hold_the_bytes(finished, recipe, tmp_path):
    collected = packs.collect(RunFolder(finished, recipe), [0], allow_partial=False)
    largest = max(run.artefact.weights.bytes for run in collected)
    packed = packs.pack(collected, tmp_path, pack_bytes=2 * largest)
    files = sorted(tmp_path.iterdir())
    assert len(files) > 1 and {path.name for path in files} == {artefact.weights.file for artefact in packed}
    assert not any(zipfile.is_zipfile(path) for path in files)
    for run, artefact in zip(collected, packed, strict=True):
        place = artefact.weights
        data = (tmp_path / place.file).read_bytes()[place.offset : place.offset + place.bytes]
        assert data == run.weights.read_bytes()


def test_packaging_twice_gives_the_same_bytes(finished, tmp_path):
    for name in ("a", "b"):
        assert package(finished, tmp_path / name) == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_unfinished_runs_are_named_or_left_out(runs, recipe, tmp_path, capsys):
    missing = first_run(runs, recipe)
    (missing / "done.json").unlink()
    assert package(runs, tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert str(missing.relative_to(runs)) in message and "1 of 7" in message and message.count("\n") == 1
    assert package(runs, tmp_path / "out", "--allow-partial") == 0
    manifest = read_manifest(tmp_path / "out" / "manifest.json")
    assert len(manifest.artefacts) == 6 and len(manifest.routes[0].localisers) == 2


def test_nothing_to_package_is_said(runs, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    assert package(tmp_path / "none", tmp_path / "out") == 1
    assert "no runs of profile 'smoke'" in capsys.readouterr().err
    assert package(runs, tmp_path / "out", "--recipes", "unheard_of") == 1
    assert "'unheard_of'" in capsys.readouterr().err


def spoil_bytes(folder: Path) -> None:
    data = bytearray((folder / "weights.ts").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "weights.ts").write_bytes(data)


def spoil_golden(folder: Path) -> None:
    document = json.loads((folder / "artefact.json").read_text())
    golden = document["weights"]["golden_output"]
    document["weights"]["golden_output"] = [value + 1.0 for value in golden]
    (folder / "artefact.json").write_text(json.dumps(document))


def spoil_artefact(folder: Path) -> None:
    (folder / "artefact.json").write_text("{")


@pytest.mark.parametrize("spoil", [spoil_bytes, spoil_golden, spoil_artefact])
def test_spoilt_run_leaves_no_package(runs, recipe, tmp_path, capsys, spoil):
    spoil(first_run(runs, recipe))
    assert package(runs, tmp_path / "out") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("build_dataset: ")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_only_an_earlier_package_is_replaced(runs, recipe, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    assert package(runs, out) == 1
    assert "no package of this kit" in capsys.readouterr().err
    (out / "thesis.txt").unlink()
    assert package(runs, out) == 0
    before = (out / "manifest.json").read_bytes()
    spoil_bytes(first_run(runs, recipe))
    assert package(runs, out) == 1
    assert (out / "manifest.json").read_bytes() == before
    assert package(runs, out, "--name", "again", "--allow-partial") == 1


def test_release_keeps_the_manifest(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(build_dataset, "RELEASES", tmp_path)
    assert package(finished, tmp_path / "out", "--release", "--name", "first") == 0
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "out" / "manifest.json").read_bytes()


def members_of(recipe):
    return [f"{recipe.name}/{one.pooled_as}" for one in recipe.members() if one.member.role == "grader"]


def found_ensemble(recipe, **changes):
    """The third grader and the one of all conditions."""
    names = members_of(recipe)
    none = dict.fromkeys(GROUPS, 0.0)
    content = {
        "average": "probabilities",
        "weights": {names[2]: none | {"subarticular": 1}, names[3]: none | {"spinal": 0.5, "foraminal": 1}},
        "multipliers": {"spinal": [1, 2, 4], "foraminal": [1, 1, 1], "subarticular": [1, 1, 1]},
        "order": [names[2], names[3]],
        "fitted_score": 0.4,
    }
    return content | changes


def test_a_found_ensemble_says_who_takes_part_how_much_and_when(finished, recipe, tmp_path, capsys):
    (tmp_path / "found.json").write_text(json.dumps(found_ensemble(recipe)))
    assert package(finished, tmp_path / "out", "--ensemble", str(tmp_path / "found.json")) == 0
    manifest = read_manifest(tmp_path / "out" / "manifest.json")
    (route,) = manifest.routes
    graders = [one.member.name for one in recipe.members() if one.member.role == "grader"]
    assert [grader.name for grader in route.graders] == [f"{graders[2]}_fold0", f"{graders[3]}_fold0"]
    assert route.graders[1].weight == {"spinal": 0.5, "foraminal": 1, "subarticular": 0}
    packed = {artefact.member.name for artefact in manifest.artefacts}
    assert packed == {*route.localisers, *(grader.name for grader in route.graders)}
    assert manifest.average == "probabilities" and manifest.multipliers["spinal"] == (1, 2, 4)
    assert manifest.order == (f"{graders[2]}_fold0", f"{graders[3]}_fold0")


def weigh(group, value, member=-1):
    """Give a member of the ensemble, the last by default, another weight."""
    return lambda found: list(found["weights"].values())[member].update({group: value})


def drop(*path):
    def change(found):
        for name in path[:-1]:
            found = list(found.values())[-1] if name == "*" else found[name]
        del found[path[-1]]

    return change


def put(name, value):
    return lambda found: found.update({name: value})


WRONG_ENSEMBLES = {
    "no weights": (put("weights", {}), "weights: Dictionary should have at least 1 item"),
    "weights of a condition are 0": (weigh("spinal", 0), "weights: those of spinal are all 0"),
    "all weights are 0": (
        lambda found: [its.update(dict.fromkeys(GROUPS, 0)) for its in found["weights"].values()],
        "weights: those of spinal are all 0",
    ),
    "a member that does not grade": (
        weigh("spinal", 1, member=0),
        "weights.split_and_global/split_and_global_subarticular_tiny.spinal of the ensemble is 1, but",
    ),
    "a group is missing": (
        drop("weights", "*", "foraminal"),
        "weights.split_and_global/split_and_global_global_tiny.foraminal: is missing",
    ),
    "multipliers miss a group": (drop("multipliers", "foraminal"), "multipliers.foraminal: is missing"),
    "order is cut": (lambda found: found["order"].pop(), "order: lacks split_and_global/split_and_global_global_tiny"),
    "order doubles": (lambda found: found["order"].append(found["order"][0]), "_subarticular_tiny 2 times"),
    "order names a stranger": (lambda found: found["order"].append("a/ghost"), "order: names a/ghost, which has no"),
    "a stranger has weights": (
        lambda found: (
            found["weights"].update({"a/ghost": dict.fromkeys(GROUPS, 0.5)}),
            found["order"].append("a/ghost"),
        ),
        "the ensemble contains a/ghost, which is not among the finished runs given",
    ),
    "NaN": (weigh("spinal", float("nan")), "global_tiny.spinal: Input should be a finite number"),
    "infinite": (weigh("spinal", float("inf")), "global_tiny.spinal: Input should be a finite number"),
    "negative": (weigh("spinal", -1), "global_tiny.spinal: Input should be greater than or equal to 0"),
    "no number": (weigh("spinal", "much"), "global_tiny.spinal: Input should be a valid number"),
    "unknown group": (weigh("lumbar", 1), "global_tiny.lumbar"),
    "bad multipliers": (lambda found: found["multipliers"].update(spinal=[1, -2, 4]), "multipliers.spinal.1: Input"),
    "two multipliers": (lambda found: found["multipliers"].update(spinal=[1, 2]), "multipliers.spinal.2: is missing"),
    "bad average": (put("average", "median"), "average: Input should be 'logits' or 'probabilities'"),
    "no average": (drop("average"), "average: is missing"),
    "no order": (drop("order"), "order: is missing"),
}


@pytest.mark.parametrize("wrong", WRONG_ENSEMBLES)
def test_an_ensemble_edited_by_hand_is_refused_by_its_dotted_path(finished, recipe, tmp_path, capsys, wrong):
    change, sentence = WRONG_ENSEMBLES[wrong]
    content = found_ensemble(recipe)
    change(content)
    path = tmp_path / "found.json"
    path.write_text(json.dumps(content))
    assert package(finished, tmp_path / "out", "--ensemble", str(path)) == 1
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and said.startswith("build_dataset: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "found.json is not there: make ensemble writes it"),
        ("{", "found.json cannot be read (Expecting property name"),
        ("[]", "found.json holds no ensemble: make ensemble writes it anew"),
    ],
)
def test_a_file_that_is_no_ensemble_is_told(finished, tmp_path, capsys, text, sentence):
    if text is not None:
        (tmp_path / "found.json").write_text(text)
    assert package(finished, tmp_path / "out", "--ensemble", str(tmp_path / "found.json")) == 1
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_a_condition_may_be_left_to_the_priors_where_the_search_says_so(recipe, tmp_path):
    content = found_ensemble(recipe, left_to_priors=["spinal"])
    weigh("spinal", 0)(content)
    (tmp_path / "found.json").write_text(json.dumps(content))
    assert read_ensemble(tmp_path / "found.json", FoundEnsemble).left_to_priors == ("spinal",)


def test_the_folds_of_a_model_share_its_weight(recipe):
    entry = next(one for one in recipe.members() if one.member.role == "grader")
    names = [f"{entry.member.name}_fold{fold}" for fold in range(2)]

    def run(name):
        artefact = Artefact.model_construct(member=entry.member.model_copy(update={"name": name}))
        return packs.TrainedMember(entry, artefact, Path())

    runs = {recipe.name: [run(name) for name in names]}
    graders = tuple(released.GraderWeight(name=name, weight=entry.weight) for name in names)
    model = f"{recipe.name}/{entry.pooled_as}"
    weights, same = {"spinal": 0.6, "foraminal": 0.2, "subarticular": 0.0}, dict.fromkeys(GROUPS, (1, 1, 1))
    left = ("subarticular",)
    found = FoundEnsemble(
        average="logits", weights={model: weights}, multipliers=same, left_to_priors=left, order=(model,)
    )
    (route,) = weighted((released.Route(name="r", localisers=(), graders=graders),), runs, found)
    assert [grader.weight for grader in route.graders] == [{"spinal": 0.3, "foraminal": 0.1, "subarticular": 0}] * 2


def test_recipes_that_average_differently_meet_in_logits(runs, recipe, tmp_path):
    folder = RunFolder(runs, recipe)
    found = collect(folder, [0], False)
    probabilities = recipe.model_copy(update={"average": "probabilities"})
    alone = [(RunFolder(runs, probabilities), found)]
    assert build_dataset.build(alone, tmp_path / "alone", "alone", {}).average == "probabilities"
    other = RunFolder(runs, probabilities.model_copy(update={"name": "other"}))
    other.priors.parent.mkdir()
    shutil.copy(folder.priors, other.priors)
    assert build_dataset.build([(folder, found), (other, [])], tmp_path / "both", "both", {}).average == "logits"


def test_runs_of_another_state_of_the_recipe_are_trained_again(runs, recipe):
    fitting = recipe.graders["spinal"].fitting.model_copy(update={"sigma_px": 7.0})
    grader = recipe.graders["spinal"].model_copy(update={"fitting": fitting})
    changed = recipe.model_copy(update={"graders": {**recipe.graders, "spinal": grader}})
    again = "1 of 7 runs were trained with another state of the recipe: .*spinal_tiny/fold0 .make train-all trains them"
    with pytest.raises(packs.UnusableRun, match=again) as error:
        packs.collect(RunFolder(runs, changed), [0], allow_partial=False)
    assert "not finished" not in str(error.value)
    (first_run(runs, recipe) / "done.json").unlink()
    with pytest.raises(packs.UnusableRun, match=rf"{again}.*; 1 of 7 runs are not finished"):
        packs.collect(RunFolder(runs, changed), [0], allow_partial=False)


def test_schema_is_current():
    committed = json.loads((build_dataset.RELEASES / "schema.json").read_text())
    assert committed == released.Manifest.model_json_schema(), "run: python build_dataset.py --schema"


def test_readme_explains_every_field():
    text = (build_dataset.RELEASES / "README.md").read_text()
    explained = set(re.findall(r"`([a-z0-9_]+)`", text))
    models = [released.Manifest, released.Artefact, released.Weights, released.Provenance, released.Calibration]
    models += [released.Stacker, released.StackedGroup, released.Layer, released.Trees]
    models += [released.Route, released.GraderWeight, Shape, specs.Member, specs.ViewRequest, specs.SliceChoice]
    models += [released.LocaliserError, specs.CropOffset]
    for model in models:
        assert issubclass(model, BaseModel)
        assert set(model.model_fields) - explained - {"member", "weights", "provenance"} == set(), model.__name__


def named_runs(finished: Path, recipe: Recipe, *roles: str) -> list[packs.TrainedMember]:
    found = packs.collect(RunFolder(finished, recipe), (0,), False)
    return [run for run in found if run.recipe.member.role in roles]


def test_localisers_work_apart_together_or_for_their_own_graders(finished, recipe):
    both = named_runs(finished, recipe, "localiser", "grader")
    finders = named_runs(finished, recipe, "localiser")
    runs = {"system": both, "finders": finders[:1]}
    names = [run.artefact.member.name for run in finders]
    (together,) = packs.routes_of(runs, "together")
    assert list(together.localisers) == [*names, names[0]] and len(together.graders) == len(both) - len(finders)
    apart = packs.routes_of(runs, "apart")
    assert [route.name for route in apart] == ["system_at_system", "system_at_finders"]
    assert apart[1].localisers == (names[0],) and apart[1].graders == together.graders
    with pytest.raises(packs.UnusableRun, match="finders.*--locate together or apart"):
        packs.routes_of(runs, "own")
    with pytest.raises(packs.UnusableRun, match="no finished grader"):
        packs.routes_of({"finders": finders}, "together")


def test_only_the_folds_that_a_localiser_ships_are_packed(recipe, tmp_path):
    name = next(iter(recipe.localisers))
    localisers = recipe.localisers | {name: recipe.localisers[name].model_copy(update={"packed_folds": (0,)})}
    two = recipe.model_copy(update={"localisers": localisers})
    write_runs(tmp_path, two, folds=(0, 1))
    found = packs.collect(RunFolder(tmp_path, two), (0, 1), False)
    shipped = [run.artefact.member.name for run in found]
    member = f"{recipe.name}_{name}"
    assert f"{member}_fold0" in shipped and f"{member}_fold1" not in shipped
    assert len(shipped) == 2 * len(two.members()) - 1


def test_localisers_that_recipes_share_are_packaged_once(finished, tmp_path):
    runs = shutil.copytree(finished, tmp_path / "runs")
    write_runs(runs, load_named("student", "smoke"))
    assert package(runs, tmp_path / "both", "--recipes", "split_and_global,student") == 0
    manifest = read_manifest(tmp_path / "both" / "manifest.json")
    whole, student = manifest.routes
    assert student.localisers == whole.localisers and [one.name for one in student.graders] == [
        "student_all_tiny_fold0"
    ]
    assert package(runs, tmp_path / "alone", "--recipes", "student") == 0
    alone = read_manifest(tmp_path / "alone" / "manifest.json")
    assert [one.member.name for one in alone.artefacts] == [*whole.localisers, "student_all_tiny_fold0"]


def stacked(names, size):
    """A stacker of some models, as a search writes it, that doubts what is severe."""
    layer = {"weights": [[0.0] * size] * 3, "bias": [0.0, 0.0, -1.0]}
    return {
        "kind": "mlp",
        "groups": {"subarticular": {"models": [[name] for name in names], "keep": 1, "layers": [layer]}},
    }


def test_a_stacker_is_packaged_with_the_networks_that_it_needs_and_run(finished, recipe, tmp_path, capsys):
    name = members_of(recipe)[2]
    size = 2 + STACKER_CONTEXT
    (tmp_path / "found.json").write_text(json.dumps(found_ensemble(recipe, stacker=stacked([name], size))))
    assert package(finished, tmp_path / "out", "--ensemble", str(tmp_path / "found.json")) == 0
    assert "temperatures and stacker (mlp) of" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out" / "manifest.json")
    network = f"{name.partition('/')[2]}_fold0"
    assert manifest.stacker.groups["subarticular"].models == ((network,),)
    plain = manifest.model_copy(update={"stacker": None})
    (route,) = manifest.routes
    logits = {row: np.array([0.0, 1.0, 1.0]) for row in ROWS if "subarticular" in row}
    made = [Results(one, ["1"]) for one in (manifest, plain)]
    for results in made:
        results.set_answers("1", (route.name, network), logits, 1)
    (rows, fallbacks), (before, same) = (results.rows("1") for results in made)
    expected = before * np.where([[row in logits] for row in ROWS], np.exp([[0, 0, -1]]), 1)
    np.testing.assert_allclose(rows, expected / expected.sum(1, keepdims=True), rtol=1e-5)
    assert fallbacks == same and made[0].unstacked("1") == made[1].unstacked("1") == []
    del logits[next(iter(logits))]
    fewer = Results(manifest, ["1"])
    fewer.set_answers("1", (route.name, network), logits, 1)
    assert len(fewer.unstacked("1")) == 1
    broken = manifest.model_dump(mode="json")
    broken["stacker"]["groups"]["subarticular"]["models"] = [["nobody"]]
    with pytest.raises(ValueError, match="the stacker names 'nobody', which is no grader"):
        Manifest.model_validate(broken)


def test_what_the_stacker_alone_answers_needs_no_weight(finished, recipe, tmp_path, capsys):
    name = members_of(recipe)[2]
    none = {name: dict.fromkeys(GROUPS, 0.0)}
    left = {"left_to_priors": ["spinal", "foraminal"], "weights": none, "order": [name]}
    found = found_ensemble(recipe, stacker=stacked([name], 2 + STACKER_CONTEXT), **left)
    (tmp_path / "found.json").write_text(json.dumps(found))
    assert package(finished, tmp_path / "out", "--ensemble", str(tmp_path / "found.json")) == 0
    assert "no network grades 15 of 25 rows" in (said := capsys.readouterr().out) and "subarticular_st" not in said
    manifest = read_manifest(tmp_path / "out" / "manifest.json")
    network = f"{name.partition('/')[2]}_fold0"
    ((route, grader),) = Schedule(manifest, Clock(1e6, lambda: 0.0), 1).order
    assert grader == network and {network} == {one.name for part in manifest.routes for one in part.graders}
    results = Results(manifest, ["1"])
    results.set_answers("1", (route, network), {row: np.zeros(3) for row in ROWS if "subarticular" in row}, 1)
    assert all("subarticular" not in row for row in results.rows("1")[1]) and len(results.rows("1")[1]) == 15


def test_a_stacker_of_a_member_that_does_not_take_part_is_refused(finished, recipe, tmp_path, capsys):
    found = found_ensemble(recipe, stacker=stacked([members_of(recipe)[0]], 2 + STACKER_CONTEXT))
    (tmp_path / "found.json").write_text(json.dumps(found))
    assert package(finished, tmp_path / "out", "--ensemble", str(tmp_path / "found.json")) == 1
    assert "stacker: names" in capsys.readouterr().err


def test_rows_that_no_network_grades_are_named(finished, tmp_path, capsys):
    assert package(finished, tmp_path / "whole") == 0
    assert "no network grades" not in capsys.readouterr().out
    canal = load_named("canal_only", "smoke")
    write_runs(tmp_path / "runs", canal)
    assert package(tmp_path / "runs", tmp_path / "canal") == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("no network grades"))
    assert (
        said.startswith("no network grades 20 of 25 rows, which keep the priors: left_neural") and "spinal" not in said
    )
