"""A found ensemble says who takes part, how much and when, or is refused by its dotted path; stackers with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kernels.lumbar import manifest as released
from kernels.lumbar.labels import GROUPS, ROWS
from kernels.lumbar.manifest import STACKER_CONTEXT, Artefact, Manifest
from kernels.lumbar.networks.weights import read_manifest
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.results import Results
from kernels.lumbar.run.schedule import Schedule
from tests.support.networks.packaged_runs import found_ensemble, members_of, package
from training.packaging import packs
from training.packaging.ensemble_weights import FoundEnsemble, read_ensemble, weighted


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
