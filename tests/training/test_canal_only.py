"""Data with one series and one condition, as an import has them, from training to the kernel's answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import build_dataset
from kernels.lumbar import predict
from kernels.lumbar.labels import LEVELS, ROWS
from tests.support.dicom.spider_files import write_imported
from training import train_all
from training.data.folds import FoldsError
from training.data.soft_labels import write_soft_labels
from training.recipe_schema.load import load_named, merge
from training.recipe_schema.schema import Recipe
from training.runs import RunFolder
from training.steps import TrainingOptions
from training.train_network import TrainingError

CANAL = [f"spinal_canal_stenosis_{level}" for level in LEVELS]
TINY = {
    "folds": 2,
    "localisers": {"sagittal_t2": {"fitting": {"optimisation": {"epochs": 1, "batch_size": 2}}}},
    "backbones": {"tiny": {"timm": "test_resnet", "size_px": 32}},
    "graders": {"canal": {"fitting": {"network": {"options": {"hidden": 8}}, "optimisation": {"epochs": 1}}}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imported data of ten patients, the recipe with less of everything, and its runs."""
    folder = tmp_path_factory.mktemp("canal")
    write_imported(folder)
    document = load_named("canal_only", "smoke").model_dump(mode="json")
    del document["profile"]
    (folder / "canal_only.yaml").write_text(yaml.safe_dump(merge(document, TINY) | {"profiles": {"smoke": {}}}))
    train_all.train_recipe(recipe_of(folder), TrainingOptions(folder / "data", folder / "runs"), [0])
    return folder


def recipe_of(folder: Path) -> Recipe:
    return load_named(str(folder / "canal_only.yaml"), "smoke")


def test_the_other_conditions_stay_blank(place: Path) -> None:
    folder = RunFolder(place / "runs", recipe_of(place))
    assert folder.finished(0)[1] == []
    score = json.loads(folder.score.read_text())
    assert score["spinal"] > 0 and np.isnan([score["foraminal"], score["subarticular"]]).all() and score["final"] > 0
    shape = json.loads(folder.shape.read_text())
    assert shape is not None and max(shape["rest_mm"]) == 1e4 > min(shape["rest_mm"])
    table = pd.read_parquet(folder.out_of_fold(0))
    known = table.dropna(subset=["normal_mild"])
    assert set(known["row"]) == set(CANAL)


def test_its_package_answers_the_canal_alone(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--runs", str(place / "runs"), "--out", str(tmp_path / "weights"), "--profile", "smoke", "--folds", "0"]
    assert build_dataset.main([*given, "--recipes", str(place / "canal_only.yaml"), "--owner", "ada"]) == 0
    assert "no network grades 20 of 25 rows" in capsys.readouterr().out
    folders = ["--competition", str(place / "data"), "--weights", str(tmp_path / "weights"), "--out", str(tmp_path)]
    assert predict.main(folders) == 0
    report = json.loads((tmp_path / "run_report.json").read_text())
    assert report["studies"] == {"asked": 3, "graded": 3}
    assert all(set(rows) == set(ROWS) - set(CANAL) for rows in report["fallbacks"]["studies"].values())
    assert report["fallbacks"]["rows"] == 60 and report["fallbacks"]["guessed"]["rows"] == 0
    landmarks = pd.read_csv(tmp_path / "landmarks.csv")
    assert set(landmarks["row"]) == set(CANAL), "nothing is guessed of what no training study had"


def test_a_recipe_that_needs_other_series_says_which_does_not(place: Path, tmp_path: Path) -> None:
    whole = load_named("split_and_global", "smoke").model_dump(mode="json")
    whole["localisers"] = {"sagittal_t1": whole["localisers"]["sagittal_t1"]}
    recipe = Recipe.model_validate(whole | {"graders": {}})
    with pytest.raises(TrainingError, match=r"no training study has both .*canal_only .* LOCALISERS_ONLY=1"):
        train_all.train_recipe(recipe, TrainingOptions(place / "data", tmp_path), [0])


def test_a_student_learns_from_soft_labels_at_localisers_of_another_recipe(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    runs, owner = tmp_path / "runs", recipe_of(tmp_path)
    document = owner.model_dump(mode="json") | {"name": "pupil", "localisers_of": "canal_only"}
    del document["profile"], document["localisers"]
    document["graders"]["canal"]["fitting"]["labels"] = {"soft": 0.5}
    (tmp_path / "pupil.yaml").write_text(yaml.safe_dump(document | {"profiles": {"smoke": {}}}))
    pupil = load_named(str(tmp_path / "pupil.yaml"), "smoke")
    studies = sorted(pd.read_csv(tmp_path / "data" / "train.csv", dtype=str)["study_id"])
    answers = np.random.default_rng(0).dirichlet([1, 1, 1], (len(studies), 25))
    write_soft_labels(tmp_path / "soft.csv", studies, answers)
    options = TrainingOptions(tmp_path / "data", runs, labels=tmp_path / "soft.csv")
    (localiser,) = [one for one in owner.members() if one.member.role == "localiser"]
    located = RunFolder(runs, owner).network_folder(localiser.member.name, 0)
    before = {path.name: path.stat().st_mtime_ns for path in located.iterdir()}
    train_all.train_recipe(pupil, options, [0])
    assert {path.name: path.stat().st_mtime_ns for path in located.iterdir()} | {"artefact.json": 0} == before | {
        "artefact.json": 0  # its calibration is written again
    }
    folder = RunFolder(runs, pupil)
    assert sorted(path.name for path in folder.profile.glob("*/fold0")) == ["fold0"]
    assert folder.out_of_fold(0).is_file() and json.loads(folder.score.read_text())["cautions"]
    (grader,) = [one for one in pupil.members() if one.member.role == "grader"]
    soft = (folder.network_folder(grader.member.name, 0) / "weights.ts").read_bytes()
    own = next(one for one in owner.members() if one.member.role == "grader")
    assert soft != (RunFolder(runs, owner).network_folder(own.member.name, 0) / "weights.ts").read_bytes()
    given = ["--runs", str(runs), "--out", str(tmp_path / "weights"), "--profile", "smoke", "--folds", "0"]
    assert build_dataset.main([*given, "--recipes", str(tmp_path / "pupil.yaml"), "--owner", "ada"]) == 0
    assert folder.folds == RunFolder(runs, owner).folds and not folder.own_folds.exists()
    others = pd.read_csv(folder.folds, dtype=str).assign(fold=lambda table: (table["fold"] == "0").astype(int))
    others.to_csv(folder.own_folds, index=False)
    with pytest.raises(FoldsError, match="pupil.*has other folds than"):
        train_all.train_recipe(pupil, options, [0])
    kept = folder.folds.read_text()
    folder.own_folds.replace(folder.folds)  # after the localisers were trained
    with pytest.raises(TrainingError, match="is canal_only's and was trained on other data or with other options"):
        train_all.train_recipe(pupil, options, [0])
    folder.folds.write_text(kept)
    done = json.loads((located / "done.json").read_text())
    (located / "done.json").write_text(json.dumps(done | {"digest": "another"}))
    with pytest.raises(TrainingError, match="is canal_only's and was trained on other data or with other options"):
        train_all.train_recipe(pupil, options, [0])
