"""The whole training on data that the project's phantom did not make: odd sizes, names, numbering, syntaxes."""

import json
import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from kernels.lumbar.labels import ROWS
from tests.support.dicom.dicom_factory import write_foreign_dataset
from training import train_all
from training.data.label_table import write_label_table
from training.data.out_of_fold import OutOfFoldError
from training.data.tables import read_tables
from training.recipe_schema.load import RECIPES, merge
from training.recipe_schema.schema import Recipe
from training.runs import RunFolder
from training.steps import TrainingOptions
from training.workflow import __main__ as workflow

TINY = {
    "folds": 2,
    "train_folds": [0],
    "localisers": {
        name: {"fitting": {"optimisation": {"epochs": 1, "batch_size": 4}}}
        for name in ("sagittal_t2", "sagittal_t1", "axial_t2")
    },
    "backbones": {"tiny": {"timm": "test_resnet", "size_px": 32}},
    "graders": {
        name: {"fitting": {"network": {"options": {"hidden": 8}}, "optimisation": {"epochs": 1}}}
        for name in ("spinal", "foraminal", "subarticular", "global")
    },
}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    document = yaml.safe_load((RECIPES / "split_and_global.yaml").read_text())
    smoke = merge(document, document.pop("profiles")["smoke"])
    return Recipe.model_validate(merge(smoke, TINY) | {"profile": "smoke"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("foreign")
    write_foreign_dataset(root, studies=8, seed=21, test_studies=1)
    return root


@pytest.fixture(scope="module")
def runs(recipe: Recipe, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train_all.train_recipe(recipe, TrainingOptions(data, folder), [0])
    return folder


def test_every_member_is_finished_with_its_curves(recipe: Recipe, runs: Path) -> None:
    folder = RunFolder(runs, recipe)
    for entry in recipe.members():
        job = folder.network_folder(entry.member.name, 0)
        for name in ("weights.ts", "artefact.json", "history.csv", "curves.png", "recipe.resolved.yaml", "done.json"):
            assert (job / name).is_file(), f"{job / name} is missing"


def test_out_of_fold_rows_are_of_studies_the_fold_never_saw(recipe: Recipe, runs: Path) -> None:
    folder = RunFolder(runs, recipe)
    folds = pd.read_csv(folder.folds, dtype={"study_id": str}).set_index("study_id")["fold"]
    rows = pd.read_parquet(folder.out_of_fold(0))
    studies = rows["study"].unique()
    assert set(studies) == set(folds.index[folds == 0])
    seen = json.loads(folder.domain.read_text())
    assert seen["domain"] is None and set(seen["reliability"]) <= {recipe.name}  # of four studies no spread is known
    graders = [entry.member.name for entry in recipe.members() if entry.member.role == "grader"]
    assert len(rows) == 25 * len(studies) * len(graders) and set(rows["member"]) == set(graders)
    seconds = json.loads(folder.seconds.read_text())
    assert set(seconds["members"]) == set(graders) and min(seconds["members"].values()) > 0
    assert seconds["located"][recipe.name] > 0
    assert json.loads((folder.profile / "score.json").read_text())["studies"] == len(studies)


def test_what_is_finished_is_neither_trained_nor_validated_again(
    recipe: Recipe, data: Path, runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = [*runs.rglob("weights.ts"), *runs.rglob("artefact.json"), *runs.rglob("out_of_fold0.parquet")]
    kept += [*runs.rglob("seconds.json"), *runs.rglob("score.json")]
    before = [path.stat().st_mtime_ns for path in kept]
    caplog.set_level("INFO")
    train_all.train_recipe(recipe, TrainingOptions(data, runs), [0])
    assert [path.stat().st_mtime_ns for path in kept] == before
    score = json.loads((RunFolder(runs, recipe).score).read_text())
    assert "split_and_global/smoke is validated already" in caplog.text
    assert f"final {score['final']:.4f}" in caplog.text, "the kept score is not logged"


def test_a_changed_recipe_trains_what_depends_on_it(recipe: Recipe, data: Path, runs: Path) -> None:
    changed = recipe.model_dump(mode="json")
    changed["graders"]["foraminal"]["fitting"]["optimisation"]["weight_decay"] = 0.02
    weights = {path: path.stat().st_mtime_ns for path in runs.glob("**/weights.ts")}
    validated_ns = RunFolder(runs, recipe).out_of_fold(0).stat().st_mtime_ns
    train_all.train_recipe(Recipe.model_validate(changed), TrainingOptions(data, runs), [0])
    touched = {path.parent.parent.name for path, time_ns in weights.items() if path.stat().st_mtime_ns != time_ns}
    assert touched == {"split_and_global_foraminal_tiny"}
    assert RunFolder(runs, recipe).out_of_fold(0).stat().st_mtime_ns != validated_ns


def write_coordinates(folder: Path, grey: int) -> None:
    """Six plain images with five points each."""
    images = folder / "data" / "processed_spider_jpgs"
    images.mkdir(parents=True, exist_ok=True)
    lines = ["filename,source,level,relative_x,relative_y"]
    for number in range(6):
        cv2.imwrite(str(images / f"{number}.jpg"), np.full((40, 30), grey, np.uint8))
        lines += [f"{number}.jpg,spider,L{i}/{'S1' if i == 5 else f'L{i + 1}'},0.5,0.{i}" for i in range(1, 6)]
    (folder / "coords_pretrain.csv").write_text("\n".join(lines))


def test_pretraining_comes_first_and_follows_its_images(
    recipe: Recipe, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = recipe.model_dump(mode="json") | {"graders": {}}
    document["localisers"] = {"canal": document["localisers"]["sagittal_t2"]}
    document["localisers"]["canal"]["fitting"]["pretraining"] = {"epochs": 2, "learning_rate": 1e-4}
    asking = Recipe.model_validate(document)
    job = RunFolder(tmp_path, asking).network_folder(asking.members()[0].member.name, 0)

    def trained(coordinates: Path | None) -> str:
        train_all.train_recipe(asking, TrainingOptions(data, tmp_path, 1, True, coordinates), [0])
        return json.loads((job / "done.json").read_text())["digest"]

    without = trained(None)
    assert "no pretraining of split_and_global_canal" in caplog.text and not (job / "pretraining").exists()
    write_coordinates(tmp_path / "coordinates", grey=90)
    first = trained(tmp_path / "coordinates")
    assert len((job / "pretraining" / "history.csv").read_text().splitlines()) == 3
    write_coordinates(tmp_path / "coordinates", grey=120)
    assert len({without, first, trained(tmp_path / "coordinates")}) == 3


def test_sessions_end_between_epochs_and_come_to_the_same_networks(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = recipe.model_dump(mode="json") | {"graders": {}}
    document["localisers"] = {view: document["localisers"][view] for view in ("sagittal_t2", "sagittal_t1")}
    document["localisers"]["sagittal_t2"]["fitting"]["optimisation"]["epochs"] = 2
    short = Recipe.model_validate(document)
    monkeypatch.setattr(train_all, "load_named", lambda name, profile: short)
    names = [entry.member.name for entry in short.members()]

    def session(runs: Path, *limits: str) -> int:
        given = ["--data", str(data), "--runs", str(runs), "--recipes", short.name, "--jobs", "1"]
        return train_all.main([*given, "--cache", str(tmp_path / "cache"), *limits])

    def answers(runs: Path) -> list[tuple[float, ...]]:
        return [RunFolder(runs, short).artefact(name, 0).weights.golden_output for name in names]

    limited = tmp_path / "limited"
    job = RunFolder(limited, short).network_folder(names[0], 0)
    limits = ("--time-limit", "0")  # one epoch
    assert session(limited, *limits) == train_all.OUT_OF_TIME
    said = capsys.readouterr().out
    assert f"0 of 2 networks are finished; left are {job.relative_to(limited)}, " in said and "same command" in said
    assert len((job / "history.csv").read_text().splitlines()) == 2 and not (job / "weights.ts").exists()
    assert session(limited, *limits) == train_all.OUT_OF_TIME
    assert "1 of 2 networks are finished" in capsys.readouterr().out and (job / "weights.ts").exists()
    assert session(limited, *limits) == 0, "what follows the last epoch was cut"
    assert session(tmp_path / "whole") == 0
    assert answers(limited) == answers(tmp_path / "whole")
    assert not list(tmp_path.glob("*/cache")), "stacks lie among the runs"
    assert not list(tmp_path.rglob("checkpoint.pt")), "checkpoints of finished networks are kept"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--data", "nowhere"], "is no folder"),
        (
            ["--data", ".", "--recipes", "ghost"],
            "there is no recipe 'ghost'; several are named with spaces between, and there are: ",
        ),
        (["--data", ".", "--recipes", "split_and_global,ghost"], "there is no recipe 'ghost'"),
        (["--data", ".", "--recipes", "split_and_global", "--folds", "7"], "folds 0 to 4"),
    ],
)
def test_mistakes_end_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], sentence: str
) -> None:
    assert train_all.main([*given, "--runs", str(tmp_path), "--profile", "smoke"]) == 1
    assert sentence in capsys.readouterr().err


def test_changed_labels_train_the_graders_alone_and_are_said(
    recipe: Recipe, data: Path, runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels, folds = read_tables(data).labels, pd.read_csv(runs / recipe.name / "folds.csv", dtype={"study_id": str})
    trained = [study for study in folds["study_id"][folds["fold"] == 1] if (labels.loc[study] >= 0).any()]
    row = next(one for one in ROWS if "spinal" in one and labels.loc[trained[0], one] >= 0)
    change = {"study_id": trained[0], "row": row, "label": int(labels.loc[trained[0], row]), "use": "both"}
    write_label_table(tmp_path / "relabelled.csv", [change | {"answer": np.array([0.1, 0.2, 0.7])}])
    again = Path(shutil.copytree(runs, tmp_path / "runs"))
    before = {path: path.read_bytes() for path in again.glob("**/done.json")}
    options = TrainingOptions(data, again, labels=tmp_path / "relabelled.csv")
    train_all.train_recipe(recipe, options, [0])
    roles = {json.loads(path.read_text())["role"] for path, kept in before.items() if path.read_bytes() != kept}
    assert roles == {"grader"} and len(before) == len(recipe.members())
    assert all(path.read_bytes() == kept for path, kept in before.items() if b"localiser" in kept)
    (caution,) = json.loads((RunFolder(again, recipe).score).read_text())["cautions"]
    assert "split_and_global_spinal_tiny" in caution and "LABELS= is not nested" in caution


def test_a_table_of_other_labels_is_refused_before_anything_is_removed(
    recipe: Recipe, data: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = read_tables(data).labels
    study, row = next((one, row) for one in labels.index for row in ROWS if labels.loc[one, row] >= 0)
    change = {"study_id": study, "row": row, "label": (labels.loc[study, row] + 1) % 3, "use": "nothing"}
    table, again = tmp_path / "relabelled.csv", Path(shutil.copytree(runs, tmp_path / "runs"))
    write_label_table(table, [change | {"answer": np.array([0.1, 0.2, 0.7])}])
    sentence = f"LABELS= changes {study} {row}, which train.csv does not label"
    given = ["--data", str(data), "--profile", "smoke", "--labels", str(table), "--recipes", recipe.name]
    for command in (train_all.main, partial(workflow_main, "run"), partial(workflow_main, "plan")):
        assert command([*given, "--runs", str(tmp_path / "new")]) == 1
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    before = {path: path.read_bytes() for path in again.glob("**/fold0/*.*")}
    with pytest.raises(OutOfFoldError, match=sentence):
        train_all.train_recipe(recipe, TrainingOptions(data, again, labels=table), [0])
    assert before and {path: path.read_bytes() for path in again.glob("**/fold0/*.*")} == before


def workflow_main(command: str, given: list[str]) -> int:
    return workflow.main([command, *given])
