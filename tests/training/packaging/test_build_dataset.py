"""Packaging: finished runs become a folder that Kaggle leaves as it is and the kernel can load, or nothing at all."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from pydantic import BaseModel

import build_dataset
from kernels.build_notebook import OWNER_PLACEHOLDER
from kernels.lumbar import manifest as released
from kernels.lumbar import specs
from kernels.lumbar.manifest import Shape
from kernels.lumbar.networks.weights import read_manifest
from tests.support.networks.packaged_runs import first_run, package
from tests.support.networks.tiny_runs import write_runs
from training.packaging.packs import collect
from training.recipe_schema.load import load_named
from training.runs import RunFolder


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
