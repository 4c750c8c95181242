"""bench-grade: all graders on the same test studies, each recipe, and the ensemble that the search found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dicom_factory import write_foreign_dataset

from kernels.lumbar.labels import GROUPS, ROWS
from tests.tiny_runs import write_runs
from training.evaluation import bench_grade, out_of_fold
from training.evaluation.grading import find_system, labels_of
from training.evaluation.grading_report import OUT_OF_FOLD, TITLES
from training.evaluation.truth import read_solution
from training.recipe import Recipe
from training.runs import RunFolder
from training.train_all import load_named

NAMES = ["slice_transformer", "split_and_global"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    truth = write_foreign_dataset(root, studies=2, seed=5, test_studies=3)
    (root / "truth").mkdir()
    columns = ["study_id", "split", "condition", "level", "x_mm", "y_mm", "z_mm"]
    points = [
        (study, "test", row[:-6], row[-5:], *point)
        for study in truth.test
        for row, point in truth.landmarks[study].items()
    ]
    pd.DataFrame(points, columns=columns).to_csv(root / "truth" / "landmarks.csv", index=False)
    severities = [
        (f"{study}_{row}", *np.eye(3, dtype=int)[severity])
        for study in truth.test
        for row, severity in truth.severities[study].items()
    ]
    solution = pd.DataFrame(severities, columns=["row_id", "normal_mild", "moderate", "severe"])
    solution.to_csv(root / "truth" / "solution.csv", index=False)
    return root


def held_out(recipe: Recipe, seed: int) -> pd.DataFrame:
    """Made-up answers of all graders for 20 studies, better than nothing."""
    random = np.random.default_rng(3)
    labels = pd.DataFrame(random.integers(0, 3, (20, 25)), index=[f"s{at}" for at in range(20)], columns=list(ROWS))
    noise = np.random.default_rng(seed)
    tables = []
    for one in recipe.members():
        if one.member.role == "grader":
            answers = {
                study: {row: np.eye(3)[labels.loc[study, row]] + noise.normal(size=3) for row in ROWS}
                for study in labels.index
            }
            tables.append(out_of_fold.rows_of(recipe.name, one.pooled_as, recipe.name, 0, answers, labels))
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(NAMES):
        recipe = load_named(name, "smoke")
        write_runs(folder, recipe)
        out_of_fold.write(RunFolder(folder, recipe).out_of_fold(0), held_out(recipe, seed))
    return folder


def test_every_grader_recipe_and_ensemble_has_its_row(data, runs, tmp_path, capsys):
    given = ["--data", str(data), "--runs", str(runs), "--profile", "smoke", "--out", str(tmp_path)]
    assert bench_grade.main([*given, "--recipes", *NAMES, "view_fusion"]) == 0
    printed = capsys.readouterr()
    assert "view_fusion is left out: not trained, or by another recipe: view_fusion_" in printed.err
    content = json.loads((tmp_path / "grading.json").read_text())
    rows = {row["name"]: row for row in content["rows"]}
    graders = [
        one.member.name for name in NAMES for one in load_named(name, "smoke").members() if one.member.role == "grader"
    ]
    assert list(rows) == [*sorted(graders), *NAMES, "all recipes side by side", "found ensemble", "level priors"]
    assert all(name in printed.out for name in rows)
    assert rows["split_and_global_foraminal_tiny"]["groups"] == ["foraminal"]
    assert set(rows["found ensemble"]["scores"]) == set(TITLES)
    assert rows["found ensemble"]["scores"][OUT_OF_FOLD]["final"]["value"] < 1.0
    assert set(content["gains"]) == {"own", "together", "truth"}
    assert any("the intervals" in remark for remark in content["remarks"])


def test_the_solutions_labels_are_those_of_the_studies(data):
    solution = read_solution(data)
    labels = labels_of(solution)
    assert list(labels.columns) == list(ROWS) and len(labels) == 3
    row = solution.iloc[0]
    study, _, name = row["row_id"].partition("_")
    assert row[["normal_mild", "moderate", "severe"]].tolist()[labels.loc[study, name]] == 1
    assert ((labels == out_of_fold.MISSING).sum().sum()) == 75 - len(solution)


def test_a_recipes_weights_are_zero_for_the_graders_of_others(runs):
    system = find_system(runs, load_named("split_and_global", "smoke"), 0)
    names = ["slice_transformer/slice_transformer_spinal_tiny", "split_and_global/split_and_global_spinal_tiny"]
    weights = bench_grade.weights_of(system, names)
    assert weights.tolist() == [[0, 0, 0], [1, 0, 0]] and GROUPS[0] == "spinal"


@pytest.mark.parametrize(
    ("with_truth", "sentence"),
    [(False, "solution.csv does not exist: only a phantom"), (True, "holds no finished recipe of profile smoke")],
)
def test_mistakes_end_in_one_sentence(data, tmp_path, capsys, with_truth, sentence):
    given = ["--data", str(data if with_truth else tmp_path), "--runs", str(tmp_path), "--profile", "smoke"]
    assert bench_grade.main([*given, "--recipes", "split_and_global"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("bench-grade stopped: ") and sentence in last
