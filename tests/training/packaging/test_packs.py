"""Packs: the bytes of the networks that take part, once each, of runs that are finished and of this recipe."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from kernels.kaggle.dataset import MOST_FILES
from kernels.lumbar.networks.weights import read_manifest
from tests.support.networks.packaged_runs import first_run, package
from tests.support.networks.tiny_runs import write_runs
from training.packaging import packs
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import Recipe
from training.runs import RunFolder


@pytest.mark.parametrize("most", [40, 4, 2])
def test_there_are_no_more_packs_than_kaggle_takes_files(finished, recipe, tmp_path, monkeypatch, most):
    monkeypatch.setattr(packs, "PACK_BYTES", 1)
    monkeypatch.setattr(packs, "MOST_PACKS", most)
    collected = packs.collect(RunFolder(finished, recipe), [0], allow_partial=False)
    packs.pack(collected, tmp_path)
    assert len(collected) > 4 and len(list(tmp_path.iterdir())) <= most
    assert packs.MOST_PACKS < MOST_FILES


def test_packs_are_no_archives_and_hold_the_bytes(finished, recipe, tmp_path, monkeypatch):
    collected = packs.collect(RunFolder(finished, recipe), [0], allow_partial=False)
    monkeypatch.setattr(packs, "PACK_BYTES", 2 * max(run.artefact.weights.bytes for run in collected))
    packed = packs.pack(collected, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) > 1 and {path.name for path in files} == {artefact.weights.file for artefact in packed}
    assert not any(zipfile.is_zipfile(path) for path in files)
    for run, artefact in zip(collected, packed, strict=True):
        place = artefact.weights
        data = (tmp_path / place.file).read_bytes()[place.offset : place.offset + place.bytes]
        assert data == run.weights.read_bytes()


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


def test_of_many_unfinished_runs_some_are_named(tmp_path, recipe):
    with pytest.raises(packs.UnusableRun) as error:
        packs.collect(RunFolder(tmp_path, recipe), [0, 1], allow_partial=False)
    said = str(error.value)
    assert said.startswith("14 of 14 runs are not finished: ") and " and 11 more (finish them" in said
    assert said.count("fold0") + said.count("fold1") == 3 and "choose folds with FOLDS=" in said


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
