"""The benchmark of localisers: its measures on points moved on purpose, its rows, and the command from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from kernels.lumbar.answers.spine_shape import stack_centres
from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.labels import ROWS, group_of
from kernels.lumbar.specs import SliceChoice, ViewRequest
from tests.support.anatomy.dotted_studies import CANAL, FORAMINA, RECESSES, Reader, middle_of, stack, study, whole
from tests.support.anatomy.spines import spine
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.networks.tiny_runs import write_runs
from training.benchmarks import localisers
from training.benchmarks.localisers import MEAN_SHAPE, FinishedRecipe, candidates, report
from training.evaluation.localiser_findings import (
    average_offsets,
    average_positions,
    findings_of,
    nearest_slice,
    shown,
    summary,
)
from training.recipe_schema import load as recipe_files
from training.recipe_schema.load import load_recipe

POINTS = spine(np.random.default_rng(5))
TRUTH = {row: POINTS[row] for row in ROWS}
CENTRE = middle_of(POINTS, ROWS)
STEP_MM = 4.0
WHOLE = study(
    stack("sagittal_t1", TRUTH, CENTRE, 17, STEP_MM, "10"),
    stack("sagittal_t2", TRUTH, CENTRE, 15, STEP_MM, "20"),
    stack("axial_t2", TRUTH, CENTRE, 55, STEP_MM, "30"),
)
SLICES = shown(WHOLE, TRUTH)
HEADWARDS, BACKWARDS, LEFTWARDS = np.array([0, 0, 1.0]), np.array([0, 1.0, 0]), np.array([1.0, 0, 0])
CANAL_READER = Reader("canal", CANAL, whole("sagittal_t2", 20))
FORAMINA_READER = Reader("foramina", FORAMINA, whole("sagittal_t1", 20))
NEAR_CANAL = ViewRequest(
    series="axial_t2",
    slices=SliceChoice(by="landmark", count=3, near=("spinal_canal_stenosis",), max_distance_mm=10),
    size_px=160,
    normalisation="unit",
)
RECESS_READER = Reader("recesses", ["left_subarticular_stenosis", "right_subarticular_stenosis"], NEAR_CANAL, "level")


def judged(row: str, moved_mm: np.ndarray) -> dict[str, object]:
    (finding,) = findings_of("7", TRUTH, SLICES, {row: TRUTH[row] + moved_mm}, [row])
    return finding


def test_every_true_landmark_lies_on_a_slice_and_the_truth_is_faultless() -> None:
    findings = pd.DataFrame(findings_of("7", TRUTH, SLICES, TRUTH))
    assert len(findings) == len(ROWS) and findings["error_mm"].max() < 1e-6
    assert findings[["found", "right_level", "right_slice"]].all(axis=None)


@pytest.mark.parametrize(
    ("row", "moved_mm", "error_mm", "right_level", "right_slice"),
    [
        (CANAL[2], 3 * BACKWARDS, 3, True, True),
        (CANAL[2], 30 * HEADWARDS, 30, False, True),
        (CANAL[2], 3 * STEP_MM * LEFTWARDS, 0, True, False),
        (FORAMINA[1], STEP_MM * LEFTWARDS, 0, True, True),
        (RECESSES[2], 40 * BACKWARDS, 40, True, True),
        (RECESSES[2], 30 * HEADWARDS, 0, False, False),
        (RECESSES[2], 2 * STEP_MM * HEADWARDS, 0, True, False),
    ],
)
def test_a_moved_point_is_wrong_in_what_it_was_moved(
    row: str, moved_mm: np.ndarray, error_mm: float, right_level: bool, right_slice: bool
) -> None:
    found = judged(row, moved_mm)
    assert found["error_mm"] == pytest.approx(error_mm, abs=1e-6)
    assert (found["right_level"], found["right_slice"]) == (right_level, right_slice)


def test_error_is_measured_in_the_plane_of_an_oblique_slice() -> None:
    tilted = study(stack("axial_t2", TRUTH, TRUTH[RECESSES[4]], 5, STEP_MM, "31", tilt_deg=40))
    slices = shown(tilted, TRUTH)
    found = {RECESSES[4]: TRUTH[RECESSES[4]] + 5 * tilted.stacks[0].planes[0].normal}
    (finding,) = findings_of("7", TRUTH, slices, found, [RECESSES[4]])
    assert finding["error_mm"] == pytest.approx(0, abs=1e-6)


def test_what_is_missing_counts_as_missed_and_what_is_guessed_as_not_found() -> None:
    missing, guessed = findings_of("7", TRUTH, SLICES, {CANAL[1]: TRUTH[CANAL[1]]}, CANAL[:2], guessed={CANAL[1]})
    assert missing["error_mm"] == np.inf and not (missing["found"] or missing["right_level"] or missing["right_slice"])
    assert guessed["error_mm"] < 1e-6 and guessed["right_level"] and not guessed["found"]


def test_landmarks_that_no_slice_shows_are_left_out() -> None:
    upper = stack("axial_t2", TRUTH, middle_of(POINTS, [row for row in RECESSES if row.endswith("l1_l2")]), 5, STEP_MM)
    assert set(shown(study(upper), TRUTH)) == {row for row in RECESSES if row.endswith("l1_l2")}


def test_the_nearest_slice_is_one_whose_image_holds_the_point() -> None:
    beside = stack("axial_t2", {}, CENTRE + 400 * LEFTWARDS, 55, STEP_MM, "40")
    here = stack("axial_t2", {}, CENTRE + 1.5 * HEADWARDS, 55, STEP_MM, "41")
    found = nearest_slice((beside, here), CENTRE)
    assert found is not None and found.stack is here and found.away_mm == pytest.approx(1.5)
    assert nearest_slice((), CENTRE) is None


def test_summary_counts_shares_and_never_averages_over_what_is_missing() -> None:
    found = {row: TRUTH[row] + 7 * BACKWARDS for row in CANAL[:4]}
    one = summary(pd.DataFrame(findings_of("7", TRUTH, SLICES, found, CANAL)))
    assert (one["count"], one["within_5_mm"], one["within_10_mm"], one["found"]) == (5, 0, 0.8, 0.8)
    assert one["median_mm"] == pytest.approx(7)
    slices_only = summary(pd.DataFrame(findings_of("7", TRUTH, SLICES, TRUTH, RECESSES, slices_only=True)))
    assert np.isnan(slices_only["median_mm"]) and slices_only["right_slice"] == 1


def test_average_positions_follow_the_stacks() -> None:
    offsets = average_offsets([{**TRUTH, **stack_centres(WHOLE)}])
    shift = np.array([5.0, -20.0, 40.0])
    moved = [
        Plane(plane.origin_mm + shift, plane.column_mm, plane.row_mm)
        for one in WHOLE.stacks
        for plane in one.planes
        if one.kind == "sagittal_t2"
    ]
    (canal,) = WHOLE.of_kind("sagittal_t2")
    other = Study("8", (type(canal)("20", canal.kind, canal.pixels, tuple(moved), canal.instances),), [])
    positions = average_positions(other, offsets)
    assert set(positions) == set(CANAL)
    for row in CANAL:
        assert positions[row] == pytest.approx(TRUTH[row] + shift)


def rows_of(*readers: Reader) -> list[localisers.Candidate]:
    by_name = {reader.member.name: reader for reader in readers}
    return candidates([FinishedRecipe("tiny", by_name, 3, None)])  # type: ignore[arg-type]


def test_a_localiser_that_starts_from_others_is_measured_after_them() -> None:
    names = [row.name for row in rows_of(CANAL_READER, FORAMINA_READER, RECESS_READER)]
    assert names == ["tiny canal", "tiny foramina", "tiny recesses after canal", "tiny together"]


def test_a_refiner_follows_whoever_finds_first_and_no_fellow_refiner() -> None:
    near = SliceChoice(by="landmark", count=3, near=tuple(CANAL[:1]))
    request = ViewRequest(series="sagittal_t2", slices=near, size_px=160, normalisation="unit")
    refiners = [Reader(name, CANAL[:1], request) for name in ("one", "another")]
    names = [row.name for row in rows_of(CANAL_READER, *refiners)]
    assert names[1:3] == ["tiny one after canal", "tiny another after canal"]


def test_rows_measure_only_what_their_localisers_answer() -> None:
    recesses, together = rows_of(CANAL_READER, RECESS_READER)[1:]
    assert recesses.rows == [row for row in ROWS if group_of(row) == "subarticular"]
    located, seconds = recesses.run(WHOLE)
    findings = findings_of("7", TRUTH, SLICES, located.points, recesses.rows)
    assert all(one["found"] and one["error_mm"] < 3 for one in findings) and seconds > 0
    assert set(together.run(WHOLE)[0].points) == set(together.rows) == {*CANAL, *RECESSES}


def test_an_untrained_part_is_named_in_the_row_of_its_recipe() -> None:
    assert rows_of(CANAL_READER)[-1].name == "tiny together (2 of 3 missing)"


def test_tables_hold_a_row_a_localiser_and_only_its_views() -> None:
    findings = [{"localiser": "canal", **one} for one in findings_of("7", TRUTH, SLICES, {}, CANAL)]
    text, numbers = report(pd.DataFrame(findings), {"canal": {"parameters": 2_500_000, "gflops": 1.5, "ms": 12.0}})
    main = next(line for line in text.splitlines() if line.startswith("canal "))
    assert main.split() == "canal ∞ ∞ – – – – 0.0% 0.0% 0.0% – 0.0% – 0.0% 2.50 1.50 12.0".split()
    assert set(numbers["canal"]["views"]) == {"sagittal_t2"}
    assert "Infinity" not in json.dumps(numbers) and numbers["canal"]["together"]["median_mm"] is None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    truth = write_foreign_dataset(root, studies=4, seed=3, test_studies=2)
    (root / "truth").mkdir()
    lines = [
        (one, split, row.removesuffix(row[-6:]), row[-5:], *point)
        for split in ("train", "test")
        for one in getattr(truth, split)
        for row, point in truth.landmarks[one].items()
    ]
    columns = ["study_id", "split", "condition", "level", "x_mm", "y_mm", "z_mm"]
    pd.DataFrame(lines, columns=columns).to_csv(root / "truth" / "landmarks.csv", index=False)
    return root


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two recipes without graders, of the same localisers."""
    document = yaml.safe_load((recipe_files.RECIPES / "split_and_global.yaml").read_text())
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name in ("trained", "untrained"):
        profile = {"localisers": document["profiles"]["smoke"]["localisers"]}
        changes = {"name": name, "graders": {}, "backbones": {}, "profiles": {"smoke": profile}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**document, **changes}, sort_keys=False))
    monkeypatch.setattr(recipe_files, "RECIPES", folder)
    return folder


def test_the_command_measures_what_is_trained_and_says_how_to_train_the_rest(
    data: Path, recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    write_runs(runs, load_recipe(recipes / "trained.yaml", "smoke"))
    given = ["--data", str(data), "--runs", str(runs), "--profile", "smoke", "--jobs", "1"]
    assert localisers.main([*given, "--recipes", "trained", "untrained"]) == 0
    printed = capsys.readouterr()
    assert f"make train-all DATA={data} RUNS={runs} RECIPES=untrained PROFILE=smoke" in printed.err
    numbers = json.loads((runs / "locating.json").read_text())["localisers"]
    alone = ["trained sagittal_t2", "trained sagittal_t1", "trained axial_t2 after sagittal_t2"]
    assert list(numbers) == [*alone, "trained together", MEAN_SHAPE]
    assert all(name in printed.out for name in numbers)
    assert numbers["trained together"]["cost"]["ms"] > 0
    assert numbers[MEAN_SHAPE]["together"]["median_mm"] < 20
    assert (runs / "locating.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("with_truth", "sentence"),
    [(False, "landmarks.csv does not exist: only a phantom"), (True, "holds no finished localiser of profile smoke")],
)
def test_mistakes_end_in_one_sentence(
    data: Path, recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], with_truth: bool, sentence: str
) -> None:
    given = ["--data", str(data if with_truth else tmp_path), "--runs", str(tmp_path), "--profile", "smoke"]
    assert localisers.main([*given, "--recipes", "untrained"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("bench-locate stopped: ") and sentence in last
