"""START: networks begin from those of the same name in other runs or packages; it is recorded, and part of digests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import build_dataset
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.networks.recipe_members import export_untrained
from tests.support.networks.tiny_grid import DOCUMENT, write_recipe
from training import networks, train_all
from training.fitting import FitError
from training.fitting.start_weights import check_start, start_state
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import MemberRecipe, Recipe
from training.runs import RunFolder, RunsError, read_artefact
from training.start import StartNetwork, find_start, start_networks, start_of
from training.steps import TrainingOptions
from training.workflow import __main__ as workflow
from training.workflow.grid import GridOrder, make_grid
from training.workflow.staleness import Staleness


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of data, the recipe alpha, and its finished networks of the first set."""
    folder = tmp_path_factory.mktemp("start")
    for name, seed in (("first", 21), ("second", 22)):
        write_foreign_dataset(folder / name, studies=6, seed=seed, test_studies=1)
    write_recipe(folder / "alpha.yaml")
    train(folder, "first", "runs")
    return folder


def alpha(place: Path) -> Recipe:
    return load_named(str(place / "alpha.yaml"), "smoke")


def train(place: Path, data: str, runs: str, start: Path | None = None, recipe: Recipe | None = None) -> RunFolder:
    chosen = recipe or alpha(place)
    train_all.train_recipe(chosen, TrainingOptions(place / data, place / runs, start=start), [0])
    return RunFolder(place / runs, chosen)


def networks_of(folder: RunFolder) -> dict[str, dict]:
    return {
        entry.member.name: json.loads((folder.network_folder(entry.member.name, 0) / "artefact.json").read_text())
        for entry in folder.recipe.members()
    }


@pytest.mark.parametrize("number", [0, 1], ids=["localiser", "grader"])
def test_all_weights_and_buffers_are_taken(place: Path, tmp_path: Path, number: int) -> None:
    entry = alpha(place).members()[number]
    torch.manual_seed(4)
    net = networks.for_member(entry, pretrained=False)
    artefact = export_untrained(entry, tmp_path)  # seeded alike
    made = artefact.provenance.model_copy(update={"network": entry.fitting.network.name})
    found = StartNetwork(artefact.model_copy(update={"provenance": made}), tmp_path / "weights.ts", tmp_path)
    state = start_state(entry, found)
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())


def test_a_training_begins_from_it_and_says_so(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = networks_of(RunFolder(place / "runs", alpha(place)))
    plain, begun = networks_of(train(place, "second", "plain")), None
    caplog.set_level("INFO")
    begun = networks_of(train(place, "second", "begun", place / "runs"))
    assert "alpha_canal_fold0 begins from alpha_canal_fold0" in caplog.text
    for name, artefact in begun.items():
        (record,) = artefact["provenance"]["published"]
        assert record["model"] == f"{name}_fold0" and record["source"] == "START=runs"
        assert record["sha256"] == source[name]["weights"]["sha256"]
        assert artefact["weights"]["sha256"] != plain[name]["weights"]["sha256"]
        assert plain[name]["provenance"]["published"] == []
    # What began from a network that had begun from another one names both.
    third = networks_of(train(place, "second", "third", place / "begun"))["alpha_canal"]["provenance"]["published"]
    assert [one["source"] for one in third] == ["START=begun", "START=runs"]


def test_another_start_is_another_training(place: Path) -> None:
    runs = place / "stale"
    train(place, "second", "stale", place / "runs")
    recipes = (str(place / "alpha.yaml"),)

    def stale(start: Path | None) -> set[str]:
        order = GridOrder(data=place / "second", runs=runs, recipes=recipes, profile="smoke", search=False, start=start)
        grid = make_grid(order)
        verdicts = Staleness(grid).verdicts()
        kinds = {grid.steps[name].kind: verdict for name, verdict in verdicts.items()}
        if not kinds["localiser"].done:
            assert "START" in kinds["localiser"].why or start is None
        return {kind for kind, verdict in kinds.items() if not verdict.done} & {"localiser", "grader"}

    assert stale(place / "runs") == set()
    assert stale(None) == {"localiser", "grader"}
    train(place, "second", "other", None)
    assert stale(place / "other") == {"localiser", "grader"}
    digest = json.loads((RunFolder(runs, alpha(place)).network_folder("alpha_canal", 0) / "done.json").read_text())
    before = (runs / "alpha" / "smoke" / "alpha_canal" / "fold0" / "weights.ts").read_bytes()
    train(place, "second", "stale", place / "runs")
    assert (runs / "alpha" / "smoke" / "alpha_canal" / "fold0" / "weights.ts").read_bytes() == before and digest


def test_a_package_is_begun_from_as_well(place: Path, tmp_path: Path) -> None:
    given = ["--runs", str(place / "runs"), "--out", str(tmp_path / "package"), "--profile", "smoke", "--owner", "ada"]
    assert build_dataset.main([*given, "--recipes", str(place / "alpha.yaml"), "--folds", "0"]) == 0
    packaged, trained = start_networks(tmp_path / "package"), start_networks(place / "runs")
    assert [one.own_name for one in packaged] == ["canal", "spinal_tiny"]
    for entry in alpha(place).members():
        one, other = (find_start(its, alpha(place), entry, 0) for its in (packaged, trained))
        assert one is not None and other is not None
        states = start_state(entry, one), start_state(entry, other)
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_another_recipes_network_of_the_name_is_taken_and_that_of_the_own_first(place: Path) -> None:
    (made,) = [one for one in start_networks(place / "runs") if one.own_name == "canal"]
    document = json.loads(json.dumps(DOCUMENT)) | {"name": "beta"}
    del document["profiles"]
    beta = Recipe.model_validate(document | {"profile": "smoke"})
    entry = beta.members()[0]
    foreign = find_start([made], beta, entry, 0)
    assert foreign is made
    provenance = made.artefact.provenance.model_copy(update={"recipe": "beta"})
    member = made.artefact.member.model_copy(update={"name": "beta_canal_fold0"})
    own = StartNetwork(
        made.artefact.model_copy(update={"provenance": provenance, "member": member}), made.file, made.start
    )
    assert find_start([made, own], beta, entry, 0) is own
    assert find_start([made], beta, beta.members()[1], 0) is None, "a grader is no localiser"


def test_another_fold_of_the_same_data_has_seen_what_is_held_out(place: Path) -> None:
    (made,) = [one for one in start_networks(place / "runs") if one.own_name == "canal"]
    recipe = alpha(place)
    entry, same = recipe.members()[0], made.artefact.provenance.data_fingerprint
    assert find_start([made], recipe, entry, 1, same) is None
    assert find_start([made], recipe, entry, 0, same) is made
    assert find_start([made], recipe, entry, 1, "other data") is made
    assert made.held_out is not None and find_start([made], recipe, entry, 0, same, made.held_out) is made
    assert find_start([made], recipe, entry, 0, same, "of another fold table") is None
    assert find_start([replace(made, held_out=None)], recipe, entry, 0, same, "not known of it") is not None


def test_localisers_of_another_recipe_begin_from_one_of_its_own(place: Path, tmp_path: Path) -> None:
    (made,) = [one for one in start_networks(place / "runs") if one.own_name == "canal"]
    owner = load_named("slice_transformer", "smoke")
    values = owner.model_dump() | {"name": "slice_transformer_two", "localisers_of": owner.name}
    pupil = Recipe.model_validate(values)
    folder, entry = RunFolder(tmp_path, pupil), pupil.localiser("sagittal_t2")
    first = folder.network_folder("slice_transformer_sagittal_t1", 0)
    first.mkdir(parents=True)
    for name in ("artefact.json", "done.json"):
        (first / name).write_bytes(made.file.with_name(name).read_bytes())
    found = start_of((), folder, entry, 0)
    assert entry.fitting.start == "sagittal_t1" and found is not None and found.key == "start"
    grader = pupil.members()[-1].member.name
    assert grader.startswith("slice_transformer_two_") and pupil.owner_of(grader) == pupil.name


def changed(entry: MemberRecipe, **options: object) -> MemberRecipe:
    network = entry.fitting.network
    return entry.with_fitting(network=network.model_copy(update={"options": network.options | options}))


def test_shapes_that_do_not_fit_are_named(place: Path) -> None:
    recipe, found = alpha(place), {one.own_name: one for one in start_networks(place / "runs")}
    localiser, grader = recipe.members()
    with pytest.raises(
        FitError, match=r"alpha_spinal_tiny: .* is .* here and .* in alpha_spinal_tiny_fold0 of START="
    ) as refused:
        start_state(changed(grader, hidden=16), found["spinal_tiny"])
    assert "\n" not in str(refused.value) and "same architecture" in str(refused.value)
    with pytest.raises(FitError, match="tensors, and .* here|is .* here and"):
        start_state(changed(localiser, decoder_channels=[16, 8], depth=2), found["canal"])
    with pytest.raises(FitError, match="alpha_spinal_tiny is a split_gru, and .* is a deeplab_heatmap"):
        start_state(grader, found["canal"])


def test_mistakes_are_refused_before_anything_begins(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(place / "second"), "--runs", str(tmp_path / "runs"), "--profile", "smoke"]
    own = [*given, "--recipes", str(place / "alpha.yaml"), "--folds", "0", "--start"]
    for main in (train_all.main, lambda argv: workflow.main(["plan", *argv])):
        assert main([*own, str(tmp_path)]) == 1
        assert f"START={tmp_path} holds no finished network" in capsys.readouterr().err
    other = yaml.safe_load((place / "alpha.yaml").read_text())
    other = other | {"name": "delta", "localisers": {"midline": other["localisers"]["canal"]}, "graders": {}}
    (tmp_path / "delta.yaml").write_text(yaml.safe_dump(other))
    assert train_all.main([*given, "--recipes", str(tmp_path / "delta.yaml"), "--start", str(place / "runs")]) == 1
    said = capsys.readouterr().err
    assert "has canal, spinal_tiny, and no network of delta is named so (midline)" in said
    wide = yaml.safe_load((place / "alpha.yaml").read_text())
    wide["graders"]["spinal"]["fitting"]["network"]["options"]["hidden"] = 16
    (tmp_path / "alpha.yaml").write_text(yaml.safe_dump(wide))
    assert train_all.main([*given, "--recipes", str(tmp_path / "alpha.yaml"), "--start", str(place / "runs")]) == 1
    assert "begin from a network of the same architecture" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "cache").exists()


def test_what_is_damaged_is_named(place: Path, tmp_path: Path) -> None:
    entry = alpha(place).members()[0]
    (made,) = [one for one in start_networks(place / "runs") if one.own_name == "canal"]
    (tmp_path / "weights.ts").write_bytes(b"x" * made.artefact.weights.bytes)
    with pytest.raises(FitError, match="does not hold the weights that its record names"):
        start_state(entry, StartNetwork(made.artefact, tmp_path / "weights.ts", tmp_path))
    with pytest.raises(FitError, match="cannot be read"):
        start_state(entry, StartNetwork(made.artefact, tmp_path / "none.ts", tmp_path))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RunsError, match=r"manifest\.json cannot be read"):
        start_networks(tmp_path)
    check_start([alpha(place)], [[0]], None)
    assert read_artefact(made.file.parent) == made.artefact
