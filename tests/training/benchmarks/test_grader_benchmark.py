"""bench-grade: all graders on the same test studies, each recipe, and the ensemble that the search found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kernels.lumbar.labels import GROUPS, ROWS
from kernels.lumbar.networks.loading import load_member
from kernels.lumbar.run import read_ahead
from kernels.lumbar.run.competition import read_series_table
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.networks.tiny_runs import write_runs
from training.benchmarks import grader_answers, graders, profile_gain
from training.benchmarks.grader_answers import AGREED, OWN, TRUE, find_system, labels_of
from training.benchmarks.graders import FOUND, MIXTURES, OUT_OF_FOLD, TITLES, Row, Scored, baselines, gain_lines
from training.data import out_of_fold
from training.evaluation import predictor
from training.evaluation.intervals import Difference, Interval, intervals, unpaired
from training.evaluation.truth import read_landmarks, read_solution
from training.evaluation.validate import answer_table, predict_studies
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import Recipe
from training.runs import RunFolder

NAMES = ["slice_transformer", "split_and_global"]
WAYS = (OWN, AGREED, TRUE)


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
    assert graders.main([*given, "--recipes", *NAMES, "view_fusion"]) == 0
    printed = capsys.readouterr()
    assert "view_fusion is left out: not trained with profile smoke, or by another recipe: view_fusion_" in printed.err
    content = json.loads((tmp_path / "grading.json").read_text())
    rows = {row["name"]: row for row in content["rows"]}
    names = [
        one.member.name for name in NAMES for one in load_named(name, "smoke").members() if one.member.role == "grader"
    ]
    assert list(rows) == [*sorted(names), *NAMES, *MIXTURES, "level priors"]
    assert all(name in printed.out for name in rows)
    assert rows["split_and_global_foraminal_tiny"]["groups"] == ["foraminal"]
    assert set(rows["found ensemble"]["scores"]) == set(TITLES)
    assert rows["found ensemble"]["scores"][OUT_OF_FOLD]["final"]["value"] < 1.0
    assert set(content["gains_over"]) <= set(NAMES)
    for by_mixture in content["gains_over"].values():
        assert set(by_mixture) == set(MIXTURES) and {tuple(its) for its in by_mixture.values()} == {WAYS}
    assert set(content["out_of_fold_less_test"]) == {"value", "low", "high", "verdict"}
    said = " ".join(content["remarks"])
    for words in ("the best recipe by its out-of-fold score", "0 lies", "wide", "chance alone moves a score"):
        assert words in said.replace("recipe, by", "recipe by")


def test_every_row_has_every_condition_that_it_grades(data, runs, tmp_path, capsys):
    given = ["--data", str(data), "--runs", str(runs), "--profile", "smoke", "--out", str(tmp_path)]
    assert graders.main([*given, "--recipes", *NAMES]) == 0
    tables = capsys.readouterr().out.split("\n\n")
    rows = json.loads((tmp_path / "grading.json").read_text())["rows"]
    score = next(row for row in rows if row["name"] == "split_and_global_foraminal_tiny")["scores"]
    for where, title in TITLES.items():
        table = next(one for one in tables if one.startswith(f"{title}, "))
        line = next(one for one in table.splitlines() if one.startswith("split_and_global_foraminal_tiny"))
        assert f"{score[where]['foraminal']['value']:.4f} ±" in line and line.count("–") == 4
        assert all(any(line.startswith(row["name"]) for line in table.splitlines()) for row in rows)


def test_two_profiles_are_compared_on_the_same_studies(data, runs, tmp_path, capsys):
    both = shutil.copytree(runs, tmp_path / "runs")
    for at, profile in enumerate(("smoke", "bench")):
        recipe = load_named("split_and_global", profile)
        write_runs(both, recipe)
        out_of_fold.write(RunFolder(both, recipe).out_of_fold(0), held_out(recipe, at))
    given = ["--data", str(data), "--runs", str(both), "--out", str(tmp_path / "out"), "--recipes"]
    assert profile_gain.main([*given, *NAMES, "--profile", "bench", "--against", "smoke"]) == 0
    printed = capsys.readouterr()
    assert "slice_transformer is left out: not trained with profile bench" in printed.err
    (line,) = [line for line in printed.out.splitlines() if line.startswith("split_and_global")]
    found = json.loads((tmp_path / "out" / "profile_gain.json").read_text())
    assert found["profiles"] == ["bench", "smoke"] and list(found["scores"]) == ["split_and_global"]
    for where in (OWN, TRUE):
        mine, its, gain = found["scores"]["split_and_global"][where]
        assert gain["value"] == pytest.approx(mine - its) and gain["low"] <= gain["value"] <= gain["high"]
        assert f"{mine:.4f}" in line and f"{its:.4f}" in line and f"{gain['value']:+.4f} [" in line
    assert profile_gain.main([*given, "slice_transformer", "--profile", "bench", "--against", "smoke"]) == 1
    assert "holds no recipe that is finished in both bench and smoke, fold 0" in capsys.readouterr().err
    assert profile_gain.main([*given, *NAMES, "--profile", "bench", "--against", "bench"]) == 1
    assert "AGAINST=bench is the profile itself" in capsys.readouterr().err


def test_a_study_is_read_once_and_graded_as_if_alone(data, runs, monkeypatch):
    systems = [find_system(runs, load_named(name, "smoke"), 0) for name in NAMES]
    labels, read = labels_of(read_solution(data)), []
    plain = read_ahead.read_study
    monkeypatch.setattr(read_ahead, "read_study", lambda *given: read.append(given[1]) or plain(*given))
    found = grader_answers.grade_test_studies(data, runs, systems, 0, labels)
    assert sorted(read) == sorted(labels.index) and tuple(found) == WAYS
    manifest, routes = grader_answers.manifest_of(runs, systems, 0)
    series = read_series_table(data / "test_series_descriptions.csv").series
    for where, known in ((AGREED, None), (TRUE, read_landmarks(data, "test"))):
        alone = predictor.Predictor(manifest.model_copy(update={"routes": routes[where]}), runs, torch.device("cpu"))
        said = predict_studies(alone, data / "test_images", series, sorted(labels.index), landmarks=known)
        tables = [answer_table(one.name, one.graders, 0, said, labels) for one in systems]
        assert np.array_equal(found[where].logits, out_of_fold.answers_of(pd.concat(tables)).logits, equal_nan=True)


def test_a_network_runs_once_on_the_same_input(runs):
    system = find_system(runs, load_named("split_and_global", "smoke"), 0)
    artefact = system.folder.artefact(system.localisers[0].member.name, 0)
    module = Counting(load_member(system.folder.profile, artefact, torch.device("cpu")).module)
    network = grader_answers.CachedMember(artefact, module, torch.device("cpu"), half=False)
    request = artefact.member.inputs[0]
    view, present = torch.rand(1, request.slices.count, request.size_px, request.size_px), torch.ones(1, 1)
    first = network([view], present)
    first_again = network([view.clone()], present)
    assert module.calls == 1 and torch.equal(first, first_again)
    first.zero_()
    assert torch.equal(network([view], present), first_again)
    network([view + 1], present)
    network([view], 0 * present)
    assert module.calls == 3


class Counting:
    def __init__(self, module):
        self.module, self.calls = module, 0

    def __call__(self, *inputs):
        self.calls += 1
        return self.module(*inputs)


def scored(seed, studies, skill):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, (studies, len(ROWS)))
    chances = np.exp(skill * np.eye(3)[labels] + random.normal(size=(studies, len(ROWS), 3)))
    return Scored(labels, chances / chances.sum(-1, keepdims=True))


def test_scores_of_different_studies_are_told_apart_only_outside_of_their_interval():
    alike = unpaired(scored(1, 60, 2), scored(2, 40, 2))
    assert alike.low < 0 < alike.high and alike.verdict == "noise"
    better = unpaired(scored(1, 60, 4), scored(2, 40, 1))
    assert better.high < 0 and better.verdict == "better"
    one, two = scored(1, 50, 2), scored(2, 50, 2)
    assert unpaired(one, two).value == pytest.approx(-unpaired(two, one).value)
    # Drawn each for itself: the squares of both widths add up, though both have as many studies.
    each = [intervals(its.labels, its.rows)["final"] for its in (one, two)]
    expected = np.hypot(*(its.high - its.low for its in each))
    assert unpaired(one, two).high - unpaired(one, two).low == pytest.approx(expected, rel=0.1)
    assert unpaired(one, one).high > 0


def test_the_best_recipe_is_chosen_out_of_fold_and_by_hindsight():
    def row(name, out_of_fold_score, test_score):
        scores = {OUT_OF_FOLD: out_of_fold_score, OWN: test_score}
        return Row(name, GROUPS, 1.0, {where: {"final": Interval(its, its, its)} for where, its in scores.items()})

    rows = [row("a", 0.3, 0.4), row("b", 0.4, 0.3)]
    both = baselines(rows, ["a", "b"])
    assert list(both) == ["a", "b"]
    assert list(baselines(rows, ["b"])) == ["b"]
    lines = gain_lines("a", both["a"], {FOUND: {OWN: Difference(-0.1, -0.2, 0.1, "noise")}})
    assert "less a, the best recipe by its out-of-fold score" in lines[0]
    assert all(words in lines[1] for words in (FOUND, "own landmarks", "does not beat it outside of the interval"))
    same = gain_lines("b", both["b"], {FOUND: {OWN: Difference(0.0, 0.0, 0.0, "noise")}})
    assert "is this very recipe" in same[1]
