"""A package without a searched ensemble takes its scaling from its recipes' out-of-fold answers, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import build_dataset
from kernels.lumbar.labels import GROUPS, ROWS, group_of
from kernels.lumbar.manifest import Manifest
from kernels.lumbar.networks.weights import read_manifest
from kernels.lumbar.run.results import Results
from tests.support.networks.combined import combined
from tests.support.networks.tiny_runs import write_runs
from tests.training.ensemble.test_ensemble_search import LOGITS
from tests.training.ensemble.test_fit_scaling import calibrated as calibrated_answers
from tests.training.ensemble.test_fit_scaling import sharpened
from training.data import out_of_fold
from training.data.out_of_fold import Answers
from training.ensemble.recipe_scaling import of_mixture
from training.ensemble.search import calibrated, cross_calibrated, simple_mean
from training.evaluation.metric import pooled
from training.recipe_schema.schema import Recipe
from training.runs import RunFolder

SHARP = sharpened(calibrated_answers(60), 1.6)


def told(recipe: Recipe, answers: Answers) -> pd.DataFrame:
    """An out-of-fold table in which all graders give the same answers to the rows of their condition groups."""
    labels = pd.DataFrame(answers.labels, index=list(answers.studies), columns=list(ROWS))
    tables = []
    for one in recipe.members():
        if one.member.role == "grader":
            said = {
                study: {row: its[at] for at, row in enumerate(ROWS) if group_of(row) in one.member.groups}
                for study, its in zip(answers.studies, answers.logits[0], strict=True)
            }
            tables.append(out_of_fold.rows_of(recipe.name, one.pooled_as, recipe.name, 0, said, labels))
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    write_runs(runs, recipe)
    out_of_fold.write(RunFolder(runs, recipe).out_of_fold(0), told(recipe, SHARP))
    return runs


def packaged(runs: Path, out: Path, *options: str) -> Manifest:
    given = ["--runs", str(runs), "--out", str(out), "--profile", "smoke", "--owner", "ada", *options]
    assert build_dataset.main(given) == 0
    return read_manifest(out / "manifest.json")


def test_the_scaling_is_that_of_the_recipes_own_answers(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = packaged(finished, tmp_path / "out")
    assert list(found.temperatures) == list(found.multipliers) == list(GROUPS)
    expected = calibrated(simple_mean(SHARP, LOGITS), SHARP, LOGITS)
    np.testing.assert_allclose(list(found.temperatures.values()), expected.temperatures, atol=1e-3)
    np.testing.assert_allclose(list(found.multipliers.values()), expected.multipliers, atol=1e-3)
    printed = capsys.readouterr().out
    severe = found.multipliers["spinal"][2]
    named = f"spinal {found.temperatures['spinal']:.2f} (× 1.00 {found.multipliers['spinal'][1]:.2f} {severe:.2f}), "
    assert f"temperatures (× multipliers): {named}" in printed
    assert "from 60 out-of-fold studies, cross-fitted score 0." in printed
    again = packaged(finished, tmp_path / "again")
    assert (again.temperatures, again.multipliers) == (found.temperatures, found.multipliers)


def test_the_kernel_answers_with_them(finished: Path, tmp_path: Path) -> None:
    manifest = packaged(finished, tmp_path / "out")
    results, random = Results(manifest, ["7"]), np.random.default_rng(0)
    said = {row: random.normal(0, 2, 3).astype(np.float32) for row in ROWS}
    for job in results.jobs:
        results.set_answers("7", job, said, 1)
    weights = [(part.weight, said) for route in manifest.routes for part in route.graders]
    rows, _ = results.rows("7")
    scaling = manifest.multipliers, manifest.temperatures
    np.testing.assert_allclose(rows, combined(weights, manifest.average, *scaling)[0], atol=1e-12)
    plain, _ = combined(weights, manifest.average)
    assert rows.max(1).mean() < plain.max(1).mean() - 0.03


def test_what_keeps_them_at_1_is_said(
    runs: Path, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(runs, recipe)

    def says(words: str) -> None:
        manifest = packaged(runs, tmp_path / "out")
        assert manifest.temperatures == manifest.multipliers == {}
        assert f"temperatures and multipliers stay 1: {words}" in capsys.readouterr().out

    out_of_fold.write(folder.out_of_fold(0), told(recipe, sharpened(calibrated_answers(12), 2)))
    says("12 out-of-fold studies give no others, or are too few")
    folder.out_of_fold(0).unlink()
    says("split_and_global/smoke/out_of_fold0.parquet is not there")
    out_of_fold.write(folder.out_of_fold(0), told(recipe, SHARP))
    grader = next(one for one in recipe.members() if one.member.role == "grader")
    path = folder.network_folder(grader.member.name, 0) / "artefact.json"
    content = json.loads(path.read_text())
    content["provenance"]["oof_score"] = {}
    path.write_text(json.dumps(content))
    says("split_and_global was trained again since it answered")


def test_a_scaling_is_taken_only_if_the_cross_fitted_score_falls() -> None:
    """Of calibrated answers the fit is noise: some are refused, and those that are taken differ little from 1."""
    taken = 0
    for seed in range(8):
        answers = calibrated_answers(60, seed)
        own = simple_mean(answers, LOGITS)
        found = of_mixture(own, answers, LOGITS)
        mixed = cross_calibrated(own, answers, LOGITS)
        gains = pooled(answers.labels, mixed).final < pooled(answers.labels, own.predict(answers, LOGITS)).final
        assert bool(found.temperatures) == gains and ("gain nothing" in found.remark) == (not gains)
        assert all(0.7 < value < 1.4 for value in found.temperatures.values())
        taken += gains
    assert 0 < taken < 8


def test_a_searched_ensemble_brings_its_own(
    finished: Path, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [f"{recipe.name}/{one.pooled_as}" for one in recipe.members() if one.member.role == "grader"]
    content = {
        "average": "logits",
        "weights": {models[3]: dict.fromkeys(GROUPS, 1.0)},
        "multipliers": dict.fromkeys(GROUPS, [1, 1, 1]),
        "temperatures": {"spinal": 1.25, "foraminal": 1.0, "subarticular": 0.75},
        "order": [models[3]],
    }
    path = tmp_path / "found.json"
    path.write_text(json.dumps(content))
    assert packaged(finished, tmp_path / "out", "--ensemble", str(path)).temperatures == content["temperatures"]
    assert f"temperatures of {path}" in capsys.readouterr().out
    del content["temperatures"]  # as of an earlier search
    path.write_text(json.dumps(content))
    assert packaged(finished, tmp_path / "out", "--ensemble", str(path)).temperatures == {}
    path.write_text(json.dumps(content | {"temperatures": {"spinal": 0}}))
    assert build_dataset.main(["--runs", str(finished), "--out", str(tmp_path / "out"), "--profile", "smoke",
                               "--ensemble", str(path)]) == 1  # fmt: skip
    assert "temperatures.spinal: Input should be greater than or equal to 0.1" in capsys.readouterr().err
