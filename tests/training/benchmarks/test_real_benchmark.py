"""bench-real: one table with intervals and pictures on imported data, made once."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import build_dataset
from kernels.lumbar.labels import LEVELS, ROWS
from tests.support.dicom.spider_files import write_imported
from tests.support.networks.tiny_runs import write_runs
from training.benchmarks.real import __main__ as real
from training.benchmarks.real import candidates, measure
from training.benchmarks.real.candidates import (
    IMAGENET,
    SCRATCH,
    STARTED,
    TITLES,
    ZERO,
    BenchOrder,
    Candidate,
    canal_part,
    possible,
    write_imagenet_recipe,
)
from training.benchmarks.real.figures import StudyResult, auc, figures_of, interval_of
from training.benchmarks.tables import BenchError
from training.data.out_of_fold import rows_of, write
from training.data.spider.dataset import import_spider
from training.data.tables import read_tables
from training.evaluation.validate import fold_manifest
from training.recipe_schema.load import load_named
from training.runs import RunFolder

CANAL = [ROWS.index(f"spinal_canal_stenosis_{level}") for level in LEVELS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imported data of ten patients, and a package."""
    folder = tmp_path_factory.mktemp("real")
    write_imported(folder)
    write_runs(folder / "phantom", load_named("split_and_global", "smoke"))
    given = ["--runs", str(folder / "phantom"), "--out", str(folder / "weights"), "--profile", "smoke"]
    assert build_dataset.main(given) == 0
    return folder


def order(place: Path, runs: str = "runs", weights: bool = True) -> BenchOrder:
    return BenchOrder(place / "data", place / runs, place / "weights" if weights else None, "smoke", False, 1)


def test_a_package_is_measured_as_it_is(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--data", str(place / "data"), "--runs", str(place / "runs"), "--weights", str(place / "weights")]
    given += ["--profile", "smoke", "--rows", "zero"]
    assert real.main(given) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith((TITLES[ZERO], "level priors"))]
    counts = [line.split("  ")[1:] for line in lines]
    assert len(lines) == 3 and [int(next(filter(None, one))) for one in counts] == [3, 10, 3]
    assert "a proxy" in said
    content = json.loads((place / "runs" / "real" / "real.json").read_text())
    row = content["rows"][TITLES[ZERO]]
    assert row["median_mm"]["low"] <= row["median_mm"]["value"] <= row["median_mm"]["high"]
    assert row["log_loss"]["value"] > 0 and 0 <= row["auc"]["value"] <= 1
    pictures = {path.name for path in (place / "runs" / "real").glob("*.png")}
    assert pictures == {f"zero_{name}.png" for name in ("best", "median", "worst")}

    def never(*_: object) -> None:
        raise AssertionError("what is finished is done again")

    monkeypatch.setattr(measure, "Predictor", never)
    assert real.main(given) == 0 and capsys.readouterr().out == said


def test_every_row_that_can_be_made_is(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: dict[str, list[str]] = {}

    def train(given: list[str]) -> int:
        runs = Path(given[given.index("--runs") + 1])
        started[runs.name] = given
        write_runs(runs, load_named(given[given.index("--recipes") + 1], "smoke"))
        return 0

    monkeypatch.setattr(candidates.train_all, "main", train)
    monkeypatch.setenv("PRETRAINED_DIR", str(tmp_path))
    (tmp_path / "tf_efficientnet_lite0.safetensors").touch()
    given = ["--data", str(place / "data"), "--runs", str(place / "all"), "--weights", str(place / "weights")]
    assert real.main([*given, "--profile", "smoke"]) == 0
    said = capsys.readouterr().out
    assert all(title in said for title in TITLES.values()) and "left out" not in said
    assert list(started) == [SCRATCH, STARTED, IMAGENET]
    assert started[STARTED][-2:] == ["--start", str(place / "weights")] and "--start" not in started[SCRATCH]
    assert {its[its.index("--cache") + 1] for its in started.values()} == {str(place / "all" / "cache")}
    assert started[IMAGENET][started[IMAGENET].index("--recipes") + 1].endswith("imagenet/canal_only.yaml")
    monkeypatch.setattr(candidates.train_all, "main", lambda given: 3)
    assert real.main([*given, "--profile", "smoke", "--rows", "scratch"]) == 1
    assert (
        "from scratch: training ended with code 3; when what it said is mended, the same command resumes it"
        in capsys.readouterr().err
    )


def write_answers(folder: RunFolder, folds: dict[str, int], labels: pd.DataFrame) -> None:
    """Out-of-fold tables of the recipe's grader, which is sure of one severity for all."""
    (grader,) = (one for one in folder.recipe.members() if one.member.role == "grader")
    for fold in set(folds.values()):
        said = {study: dict.fromkeys(np.array(ROWS)[CANAL], np.array([4.0, 0.0, 0.0])) for study in folds}
        held_out = {study: its for study, its in said.items() if folds[study] == fold}
        table = rows_of(folder.recipe.name, grader.pooled_as, folder.recipe.name, fold, held_out, labels)
        write(folder.out_of_fold(fold), table)


def test_each_patient_is_answered_by_the_fold_that_never_saw_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import_spider(place / "spider", tmp_path / "data", has_test=False)
    folds = {str(number): number % 5 for number in range(1, 11)}

    def train(given: list[str]) -> int:
        assert given[given.index("--folds") + 1 :][:5] == ["0", "1", "2", "3", "4"]
        folder = RunFolder(Path(given[given.index("--runs") + 1]), load_named("canal_only", "smoke"))
        write_runs(folder.runs, folder.recipe, tuple(range(5)))
        folder.folds.write_text("study_id,fold\n" + "".join(f"{study},{fold}\n" for study, fold in folds.items()))
        write_answers(folder, folds, read_tables(tmp_path / "data").labels)
        return 0

    monkeypatch.setattr(candidates.train_all, "main", train)
    given = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs"), "--weights", str(place / "weights")]
    assert real.main([*given, "--profile", "smoke", "--rows", "zero", "scratch"]) == 1
    assert "names no test patients: import more of them, or measure all with CROSSED=1" in capsys.readouterr().err
    assert real.main([*given, "--profile", "smoke", "--rows", "zero", "scratch", "--crossed"]) == 0
    said = capsys.readouterr().out
    assert "each patient by the fold that never saw it" in said
    rows = json.loads((tmp_path / "runs" / "real" / "real.json").read_text())["rows"]
    assert [one["studies"] for one in rows.values()] == [10, 10, 10]
    own, rescaled = (rows[f"{TITLES[SCRATCH]}{more}"] for more in ("", ", calibrated"))
    assert rescaled["median_mm"] == own["median_mm"] and rescaled["log_loss"] != own["log_loss"]
    for fold in range(5):
        answered = json.loads((tmp_path / "runs" / "real" / f"scratch_fold{fold}_train.json").read_text())["studies"]
        assert {folds[study] for study in answered} == {fold} and len(answered) == 2
    assert (tmp_path / "runs" / "real" / "scratch_fold4_worst.png").is_file()


def test_rows_that_cannot_be_made_are_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRETRAINED_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    keys, remarks = possible(order(place, weights=False), [], "")
    assert keys == [SCRATCH] and len(remarks) == 3 and "WEIGHTS=" in remarks[0] and ".safetensors" in remarks[2]
    given = ["--data", str(place / "data"), "--runs", str(tmp_path / "runs"), "--rows", "zero"]
    assert real.main(given) == 1 and "no package was named with WEIGHTS=" in capsys.readouterr().err
    assert real.main(["--data", str(tmp_path), "--runs", str(tmp_path)]) == 1
    capsys.readouterr()
    nowhere = ["--weights", str(tmp_path / "nowhere"), "--rows", "scratch"]
    assert real.main(["--data", str(place / "data"), "--runs", str(tmp_path / "runs"), *nowhere]) == 1
    assert "nowhere holds no package: name a folder that make package made" in capsys.readouterr().err


def test_a_package_that_was_trained_on_these_patients_is_not_measured_on_them(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = read_tables(place / "data").fingerprint
    write_runs(tmp_path / "own", load_named("split_and_global", "smoke"), fingerprint=ours)
    given = ["--runs", str(tmp_path / "own"), "--out", str(tmp_path / "weights"), "--profile", "smoke"]
    assert build_dataset.main(given) == 0
    plain = replace(order(place), weights=tmp_path / "weights")
    crossed = replace(plain, is_crossed=True)
    assert ZERO in possible(plain, [], ours)[0]  # its test patients are new to it
    assert not {ZERO, STARTED} & set(possible(crossed, [], ours)[0])
    assert "was trained on these very patients" in possible(crossed, [ZERO], ours)[1][0]
    assert {ZERO, STARTED} <= set(possible(crossed, [], "others")[0])
    real_bench = ["--data", str(place / "data"), "--runs", str(tmp_path / "runs"), "--profile", "smoke"]
    assert real.main([*real_bench, "--rows", "zero", "--weights", str(tmp_path / "weights")]) == 0
    assert list(json.loads((tmp_path / "runs/real/real.json").read_text())["rows"]) == [TITLES[ZERO]]


@pytest.mark.parametrize("lost", ["images", "series", "labels"])
def test_an_import_that_is_not_whole_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    data = Path(shutil.copytree(place / "data", tmp_path / "data"))
    if lost == "images":
        shutil.rmtree(next((data / "test_images").iterdir()))
    else:
        path = data / {"series": "test_series_descriptions.csv", "labels": "truth/solution.csv"}[lost]
        path.write_text("\n".join(path.read_text().splitlines()[:2]) + "\n")
    assert real.main(["--data", str(data), "--runs", str(tmp_path / "runs"), "--rows", "scratch"]) == 1
    assert "is no longer whole: of " in capsys.readouterr().err


@pytest.mark.parametrize("profile", ["smoke", "bench", "full"])
def test_the_recipe_with_a_published_encoder_is_whole(tmp_path: Path, profile) -> None:
    recipe = load_named(str(write_imagenet_recipe(tmp_path, profile)), profile)
    localiser, grader = recipe.members()
    assert localiser.fitting.network.options["encoder"] == "tu-tf_efficientnet_lite0"
    assert localiser.fitting.network.options["pretrained"] and grader.backbone is not None
    assert grader.backbone.timm == "tf_efficientnet_lite0" and grader.backbone.pretrained
    own = load_named("canal_only", profile).members()
    assert [one.fitting.augmentation for one in recipe.members()] == [one.fitting.augmentation for one in own]


def test_only_what_the_canal_needs_is_run(place: Path) -> None:
    recipe = load_named("split_and_global", "smoke")
    folder = RunFolder(place / "phantom", recipe)
    part = canal_part(fold_manifest(folder, folder.finished(0)[0], 0))
    names = {one.member.name for one in part.artefacts if one.member.role == "grader"}
    assert names == {"split_and_global_spinal_tiny_fold0", "split_and_global_global_tiny_fold0"}
    graders = tuple(one.model_copy(update={"weight": {"foraminal": 1.0}}) for one in part.routes[0].graders)
    other = part.model_copy(update={"routes": (part.routes[0].model_copy(update={"graders": graders}),)})
    with pytest.raises(BenchError, match="grades no canal"):
        canal_part(other)
    assert Candidate(ZERO, part, folder.profile).networks


def test_figures_are_those_of_the_metric_and_of_ranks() -> None:
    random = np.random.default_rng(0)
    labels, results = {}, {}
    for number in range(12):
        truth = np.full(25, -100)
        truth[CANAL] = random.integers(0, 3, 5)
        rows = np.full((25, 3), 1 / 3)
        rows[CANAL] = 0.1 + 0.7 * np.eye(3)[truth[CANAL]]
        errors = (1.0, 2.0, 3.0, 4.0, math.inf if number == 0 else 5.0)
        labels[str(number)] = truth
        results[str(number)] = StudyResult(errors, (True,) * 4 + (number > 0,), tuple(map(tuple, rows.tolist())))
    found = figures_of(results, labels, dict.fromkeys(results, np.full((25, 3), 1 / 3)))
    assert found.studies == 12 and found.median_mm.value == 3 == found.median_mm.low == found.median_mm.high
    assert found.p95_mm.value == 5 and found.p95_mm.high == math.inf
    assert found.right_level.value == pytest.approx(59 / 60) and found.right_level.high == 1
    assert found.log_loss.value == pytest.approx(-math.log(0.8), abs=1e-6)
    assert found.against_prior.value == pytest.approx(-math.log(0.8) - math.log(3), abs=1e-6)
    assert found.against_prior.verdict == "better" and found.auc.value == 1


def test_auc_is_the_share_of_pairs_in_order() -> None:
    assert auc(np.array([[1, 0.9], [0, 0.1], [0, 0.5], [1, 0.5]])) == pytest.approx(3.5 / 4)
    assert math.isnan(auc(np.array([[1, 0.9]])))
    one = interval_of([np.array([[1.0, 0.5]]), np.array([[0.0, 0.4]])], lambda drawn: auc(np.concatenate(drawn)), 50)
    assert one.value == one.low == one.high == 1, "resamples of a single class do not count"
    assert math.isnan(interval_of([np.array([])], lambda drawn: 1.0, 5).value)


def test_what_was_not_located_is_infinitely_far_and_what_is_undefined_a_dash() -> None:
    rows = tuple(map(tuple, np.full((25, 3), 1 / 3).tolist()))
    labels = {"a": np.where(np.isin(np.arange(25), CANAL), 0, -100)}
    nothing = figures_of({"a": StudyResult((math.inf,), (False,), rows)}, labels, {"a": np.array(rows)})
    cells = real._cells(nothing)
    assert cells[1] == cells[2] == "∞ [∞, ∞]" and cells[-1] == "– [–, –]"
