"""Overlays: every landmark in one panel, on the slice that shows it; and the command that draws them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import build_dataset
from kernels.lumbar.answers.locate import Located
from kernels.lumbar.labels import ROWS
from tests.support.anatomy.dotted_studies import CANAL, FORAMINA, RECESSES, middle_of, stack, study
from tests.support.anatomy.spines import spine
from tests.support.dicom.dicom_factory import ForeignTruth, write_foreign_dataset
from tests.support.networks.tiny_runs import write_runs
from training.evaluation import overlays, show
from training.evaluation.overlays import Grades, Panel, draw_located, panels
from training.recipe_schema.load import load_named

POINTS = spine(np.random.default_rng(5))
TRUTH = {row: POINTS[row] for row in ROWS}
CENTRE = middle_of(POINTS, ROWS)
T1 = stack("sagittal_t1", TRUTH, CENTRE, 17, series="10")
T2 = stack("sagittal_t2", TRUTH, CENTRE, 15, series="20")
AXIAL = stack("axial_t2", TRUTH, CENTRE, 55, series="30")


def panel_of(row: str, found: list[Panel]) -> Panel:
    (panel,) = [panel for panel in found if row in panel.rows]
    return panel


def test_each_landmark_has_one_panel_on_the_slice_that_shows_its_dot() -> None:
    found = panels(study(T1, T2, AXIAL), TRUTH, {})
    for row in ROWS:
        panel = panel_of(row, found)
        at_row, at_column, _ = panel.stack.planes[panel.index].to_pixel(TRUTH[row])
        assert panel.stack.pixels[panel.index, round(float(at_row)), round(float(at_column))] > 0, row
    assert {panel.stack.kind for panel in found for row in panel.rows if row in FORAMINA} == {"sagittal_t1"}
    for panel in (panel_of(row, found) for row in FORAMINA):
        assert panel.title.endswith("mm to the left" if panel.strip == "left foramen" else "mm to the right")


def test_left_and_right_recess_of_a_tilted_patient_lie_on_different_slices() -> None:
    tilted = dict(TRUTH)
    left, right = RECESSES[2], RECESSES[7]
    tilted[left] = TRUTH[right] + np.array([15.0, 0.0, 10.0])
    found = panels(study(AXIAL), tilted, {})
    assert panel_of(left, found).index < panel_of(right, found).index


def test_without_truth_panels_lie_where_points_were_found_rather_than_guessed() -> None:
    far = {row: point + np.array([0.0, 0.0, 40.0]) for row, point in TRUTH.items()}
    routes = {"finds": Located(dict(TRUTH)), "guesses": Located(far, guessed=set(ROWS))}
    whole = study(T1, T2, AXIAL)
    assert [panel.index for panel in panels(whole, {}, routes)] == [panel.index for panel in panels(whole, TRUTH, {})]


def test_a_study_without_t2_shows_the_canal_on_t1() -> None:
    found = panels(study(T1), TRUTH, {})
    assert all(panel_of(row, found).stack is T1 for row in CANAL)
    assert not any(row in panel.rows for panel in found for row in RECESSES)


def test_a_point_on_another_slice_says_how_far_and_a_guess_has_another_mark() -> None:
    row = RECESSES[0]
    (panel,) = panels(study(AXIAL), {row: TRUTH[row]}, {})
    _, axis = overlays.plt.subplots()
    below = {row: TRUTH[row] - np.array([0.0, 0.0, 8.0])}  # axial stacks run to the feet, 4 mm a slice
    found, guessed = Located(below, {row: 0.75}), Located(below, {row: 0.0}, {row})
    assert overlays._draw_point(axis, panel, row, found, 0, with_confidence=True) == "0.75 +2 slice"
    assert overlays._draw_point(axis, panel, row, guessed, 0, with_confidence=True) == "imputed +2 slice"
    located_mark, guessed_mark = axis.lines
    assert guessed_mark.get_marker() == "D" and located_mark.get_marker() != "D"
    assert guessed_mark.get_markerfacecolor() == "none"
    overlays.plt.close("all")


def test_pictures_are_written_with_and_without_anything_to_draw(tmp_path: Path) -> None:
    whole = study(T1, T2, AXIAL)
    draw_located(whole, {"a": Located(dict(TRUTH), dict.fromkeys(ROWS, 0.5), {ROWS[0]})}, tmp_path / "one.png", TRUTH)
    draw_located(whole, {"located": Located({})}, tmp_path / "none.png")
    assert (tmp_path / "one.png").stat().st_size > (tmp_path / "none.png").stat().st_size > 0


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ForeignTruth]:
    root = tmp_path_factory.mktemp("data")
    return root, write_foreign_dataset(root, studies=1, seed=4, test_studies=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    write_runs(folder / "runs", load_named("split_and_global", "smoke"))
    given = ["--runs", str(folder / "runs"), "--out", str(folder / "weights"), "--profile", "smoke", "--owner", "ada"]
    assert build_dataset.main([*given, "--recipes", "split_and_global"]) == 0
    return folder / "weights"


def test_clicks_of_a_training_study_are_drawn_without_weights(
    foreign: tuple[Path, ForeignTruth], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, truth = foreign
    (name,) = truth.train
    assert show.main(["--data", str(data), "--study", name, "--out", str(tmp_path)]) == 0
    split, read = show.open_study(data, name)
    clicked = show.known_landmarks(data, split, read)
    assert clicked and max(np.linalg.norm(clicked[row] - truth.landmarks[name][row]) for row in clicked) < 10
    assert (tmp_path / f"overlay_{name}.png").is_file() and f"overlay_{name}.png" in capsys.readouterr().out


def test_a_test_study_is_located_by_the_package(
    foreign: tuple[Path, ForeignTruth], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, truth = foreign
    given = ["--data", str(data), "--study", truth.test[0], "--out", str(tmp_path), "--weights", str(weights)]
    assert show.main(given) == 0
    assert "split_and_global: " in capsys.readouterr().out
    assert (tmp_path / f"overlay_{truth.test[0]}.png").is_file()


def test_finished_localisers_need_not_be_packaged(
    foreign: tuple[Path, ForeignTruth], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, truth = foreign
    given = ["--data", str(data), "--study", f"{truth.test[0]}/", "--out", str(tmp_path), "--profile", "smoke"]
    assert show.main([*given, "--runs", str(weights.parent / "runs")]) == 0
    assert "split_and_global: " in capsys.readouterr().out
    assert (tmp_path / f"overlay_{truth.test[0]}.png").is_file()
    assert show.main([*given, "--runs", str(weights.parent / "runs"), "--recipes", "view_fusion"]) == 1
    assert "holds no finished localiser of profile smoke" in capsys.readouterr().err


def test_grades_are_those_of_the_package_and_of_the_labels(
    foreign: tuple[Path, ForeignTruth], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, truth = foreign
    drawn: list[Grades] = []
    monkeypatch.setattr(show, "draw_located", lambda *given: drawn.append(given[-1]))
    (name,) = truth.train
    given = ["--data", str(data), "--study", name, "--out", str(tmp_path)]
    assert show.main([*given, "--weights", str(weights)]) == 0 and show.main(given) == 0
    answered, labelled = drawn
    _, study = show.open_study(data, name)
    predicted = show.answer_by_weights(weights, study)
    assert set(answered.answers) == set(ROWS) - set(predicted.fallbacks) != set()
    for row, answer in answered.answers.items():
        assert np.array_equal(answer, predicted.rows[ROWS.index(row)])
    assert answered.truth == labelled.truth == truth.severities[name] and not labelled.answers
    assert show.known_grades(data, "test", truth.test[0]) == {}


def test_a_grade_says_how_sure_it_is_and_whether_it_is_right() -> None:
    row, other, third = ROWS[:3]
    grades = Grades({row: np.array([0.1, 0.2, 0.7]), other: np.array([0.6, 0.3, 0.1])}, {row: 2, third: 1})
    assert grades.text(row) == ("severe 70% (correct)", overlays.RIGHT_COLOUR)
    assert grades.text(other) == ("normal 60%", overlays.UNJUDGED_COLOUR)
    assert grades.text(third) == ("true: moderate", overlays.UNJUDGED_COLOUR) and not grades.text(ROWS[9])[0]
    wrong = Grades(grades.answers, {row: 0}).text(row)
    assert wrong == ("severe 70% (is normal)", overlays.WRONG_COLOUR)


def test_mistakes_end_in_one_sentence(
    foreign: tuple[Path, ForeignTruth], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, truth = foreign
    known = truth.test[0]
    for given, sentence in (
        (["--data", str(data), "--study", "5"], f"has no study '5'; it has {known}, {truth.train[0]}"),
        (["--data", str(tmp_path), "--study", "5"], "has no train_images and no test_images"),
        (["--data", str(data), "--study", known], "give --weights to locate its landmarks"),
        (["--data", str(data), "--study", known, "--weights", str(tmp_path)], "no manifest.json of this kit"),
    ):
        assert show.main([*given, "--out", str(tmp_path)]) == 1
        said = capsys.readouterr().err
        assert said.startswith("nothing to show: ") and sentence in said and len(said.splitlines()) == 1
