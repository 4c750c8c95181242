"""SPIDER's files become data in the competition's layout: geometry, landmarks, tables; or nothing and one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom import dcmread

from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.labels import LEVELS
from tests.support.dicom.spider_files import (
    MARKER_MM,
    ORIGIN_MM,
    SPACING_MM,
    WIDTHS_MM,
    spine,
    write_mha,
    write_patient,
    write_tables,
)
from training.data.annotations import annotations_of, lift_all
from training.data.external import read_pretraining
from training.data.spider.__main__ import main
from training.data.spider.canal import DoubtfulError, canal_levels
from training.data.spider.mha import Volume, read_volume
from training.data.spider.series import clinical
from training.data.spider.source import read_folder
from training.data.tables import MISSING, read_tables
from training.evaluation.truth import is_phantom, read_landmarks, read_solution

CANAL = [f"spinal_canal_stenosis_{level}" for level in LEVELS]
NUMBERS = (1, 2, 3, 4, 5, 6, 7)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients of different series and axes, one without its highest disc."""
    folder = tmp_path_factory.mktemp("spider")
    for number in NUMBERS[:-1]:
        write_patient(folder, number, ("t2", "t1") if number % 2 else ("t2_SPACE",), flip=number % 3 == 0)
    write_patient(folder, NUMBERS[-1], without=205)
    write_patient(folder, 8, ("t1",))
    write_tables(folder, [*NUMBERS, 8])
    (folder / "images" / ".DS_Store").touch()
    return folder


@pytest.fixture(scope="module")
def imported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "data-spider"
    assert main(["--spider", str(source), "--out", str(out), "--jobs", "1"]) == 0
    return out


def mask_of(widths_mm: tuple[float, ...] = WIDTHS_MM) -> Volume:
    _, mask, _ = spine(widths_mm)
    return Volume(mask, ORIGIN_MM, np.array([[0.9, 0, 0], [0, 0, -1], [0, 1, 0]]))


def test_landmarks_are_the_canal_beside_the_discs_posterior_edge() -> None:
    _, _, expected = spine()
    found = canal_levels(mask_of())
    assert list(found) == list(LEVELS)
    for level, one in found.items():
        assert np.linalg.norm(one.point_mm - expected[level]) < 0.8, level
    np.testing.assert_allclose([one.width_mm for one in found.values()], WIDTHS_MM, atol=0.9)
    assert [one.severity for one in found.values()] == [0, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda mask: np.where(mask == 203, 0, mask), r"lacks the discs 203 \(L3/L4\)"),
        (lambda mask: np.where(mask == 100, 0, mask), "has no canal"),
        (lambda mask: np.where(mask == 202, 201, np.where(mask == 201, 202, mask)), "L3/L4 is 62 mm above L4"),
        (lambda mask: np.where((mask == 100) & (np.indices(mask.shape)[1] < 60), 0, mask), "does not reach L1/L2"),
        (lambda mask: np.where((mask == 201) & (np.indices(mask.shape)[2] < 36), 0, mask), "may be S1/S2"),
    ],
)
def test_doubtful_levels_are_refused_with_the_reason(spoil, reason: str) -> None:
    whole = mask_of()
    with pytest.raises(DoubtfulError, match=reason):
        canal_levels(Volume(spoil(whole.voxels), whole.origin_mm, whole.steps_mm))


def test_thin_slices_are_averaged_to_clinical_ones() -> None:
    image, _, _ = spine()
    thick = clinical(Volume(image, ORIGIN_MM, np.array([[0.9, 0, 0], [0, 0, -1], [0, 1, 0]])))
    assert thick.voxels.shape == (4, *image.shape[1:]) and thick.spacing_mm[0] == pytest.approx(3.6)
    np.testing.assert_allclose(thick.voxels[0], image[:4].mean(0), atol=1e-4)
    np.testing.assert_allclose(thick.origin_mm, ORIGIN_MM + (1.5 * 0.9, 0, 0))
    plain = Volume(image, ORIGIN_MM, np.array([[3.3, 0, 0], [0, 0, -1], [0, 1, 0]]))
    assert clinical(plain) is plain


def test_the_import_is_data_to_train_on(imported: Path) -> None:
    tables = read_tables(imported)
    everyone = {*tables.labels.index, *read_landmarks(imported, "test")}
    assert everyone == {"1", "2", "3", "4", "5", "6"} and len(tables.labels) == 4
    assert (tables.labels[CANAL].to_numpy() == [0, 0, 1, 2, 0]).all()
    assert (tables.labels.drop(columns=CANAL) == MISSING).all(axis=None), "nobody graded foramina and recesses"
    for study in tables.labels.index:
        kinds = dict(tables.series[study])
        assert set(kinds.values()) == {"sagittal_t2"} | ({"sagittal_t1"} if int(study) % 2 else set())
        read = read_study(imported / "train_images" / study, study, tables.series[study])
        found = lift_all(read, annotations_of(tables.coordinates[tables.coordinates["study_id"] == study]))
        truth = read_landmarks(imported, "train")[study]
        assert set(found) == set(truth) == set(CANAL)
        for row, point in found.items():
            off = np.abs(point - truth[row])
            assert off[1:].max() < 0.01 and off[0] <= 1.9, "on the nearest slice, in the same place"


@pytest.mark.parametrize("number", NUMBERS[:-1])
def test_pixels_lie_where_they_lay_in_the_file(imported: Path, number: int) -> None:
    split = "train" if (imported / "train_images" / str(number)).is_dir() else "test"
    table = pd.read_csv(imported / f"{split}_series_descriptions.csv", dtype=str)
    (series,) = table[(table["study_id"] == str(number)) & table["series_description"].str.contains("T2")]["series_id"]
    folder = imported / f"{split}_images" / str(number)
    study = read_study(folder, str(number), [(series, "sagittal_t2")])
    assert not [one for one in study.problems if one.kind != "missing-kind"]
    files = [dcmread(path) for path in (folder / series).iterdir()]
    brightest = max(file.pixel_array.max() for file in files)
    found = []
    for file in files:
        row_mm, column_mm = (np.array(file.ImageOrientationPatient[first : first + 3]) for first in (3, 0))
        for row, column in np.argwhere(file.pixel_array > 0.95 * brightest):
            steps = row * file.PixelSpacing[0] * row_mm + column * file.PixelSpacing[1] * column_mm
            found.append(np.array(file.ImagePositionPatient) + steps)
    off = np.mean(found, axis=0) - MARKER_MM
    assert np.abs(off[1:]).max() < 0.5 and abs(off[0]) < 2, "the marker is at the left, above and behind the middle"


def test_solution_truth_and_pretraining_tables(imported: Path) -> None:
    solution = read_solution(imported)
    assert len(solution) == 2 * 5 and set(solution["sample_weight"]) == {1, 2, 4}
    sample = pd.read_csv(imported / "sample_submission.csv")
    assert len(sample) == 2 * 25 and set(solution["row_id"]) <= set(sample["row_id"])
    images = read_pretraining(imported / "coordinates").images
    assert {image.filename for image in images} == {f"{study}_t2.jpg" for study in read_tables(imported).labels.index}
    for image in images:
        study = image.filename.partition("_")[0]
        rows = [read_landmarks(imported, "train")[study][row] for row in CANAL]
        expected = (np.stack(rows) - ORIGIN_MM)[:, [2, 1]] * [-1, 1] / SPACING_MM[1:]
        np.testing.assert_allclose(image.points, expected, atol=1)
    assert not is_phantom(imported)
    graded = pd.read_csv(imported / "truth" / "gradings.csv")
    assert list(graded["level"][:2]) == ["l5_s1", "l4_l5"] and len(graded) == 6 * 5


def test_who_is_left_out_and_the_licence_are_written(imported: Path) -> None:
    left_out = pd.read_csv(imported / "truth" / "left_out.csv").set_index("patient")["reason"]
    assert left_out[7] == "the mask lacks the discs 205 (L1/L2)" and left_out[8] == "it has no T2 series"
    licence = (imported / "LICENSE.txt").read_text()
    assert "CC BY 4.0" in licence and "van der Graaf" in licence
    assert "proxy" in (imported / "README.md").read_text()
    assert [path.name for path in imported.parent.iterdir()] == [imported.name]


def test_any_number_of_processes_writes_the_same(source: Path, imported: Path, tmp_path: Path) -> None:
    assert main(["--spider", str(source), "--out", str(tmp_path / "out"), "--jobs", "2"]) == 0
    files = {path.relative_to(imported) for path in imported.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert all((imported / file).read_bytes() == (tmp_path / "out" / file).read_bytes() for file in files)


def test_spiders_own_test_patients_are_taken_where_there_are_enough(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "spider"))
    assert len(read_folder(folder).test_patients()) == 2
    for number in range(20, 40):
        shutil.copy(folder / "images" / "1_t2.mha", folder / "images" / f"{number}_t2.mha")
        shutil.copy(folder / "masks" / "1_t2.mha", folder / "masks" / f"{number}_t2.mha")
    lines = [f"{number}_t2,7,{'validation' if number < 32 else 'training'},," for number in range(20, 40)]
    (folder / "overview.csv").write_text("new_file_name,num_discs,subset,EchoTime,RepetitionTime\n" + "\n".join(lines))
    assert read_folder(folder).test_patients() == {str(number) for number in range(20, 32)}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda place: (place / "masks" / "1_t2.mha").unlink(), "masks/1_t2.mha does not exist"),
        (lambda place: (place / "images" / "1_t2.mha").write_bytes(b"x"), "images/1_t2.mha is no sagittal volume"),
        (lambda place: (place / "images" / "1_t1.mha").write_bytes(b"x"), "images/1_t1.mha is no sagittal volume"),
        (lambda place: (place / "images" / "notes.txt").touch(), "notes.txt is none of SPIDER's files"),
        (lambda place: (place / "overview.csv").unlink(), "overview.csv does not exist"),
        (lambda place: (place / "overview.csv").write_text("a,b\n1,2"), "lacks the column new_file_name"),
        (lambda place: (place / "radiological_gradings.csv").write_text(""), "cannot be read as a CSV"),
        (lambda place: shutil.rmtree(place / "masks"), "has no folder masks"),
    ],
)
def test_what_is_missing_or_odd_ends_it_with_one_sentence(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil, sentence: str
) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "spider"))
    spoil(folder)
    out = tmp_path / "made" / "data"
    assert main(["--spider", str(folder), "--out", str(out), "--jobs", "1"]) == 1
    said = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert said.startswith("nothing is imported: ") and sentence in said
    assert not out.exists() and not (out.parent.exists() and any(out.parent.iterdir()))


def test_a_folder_that_holds_something_is_left_alone(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert main(["--spider", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "holds something already" in capsys.readouterr().err and (tmp_path / "out" / "mine").is_file()


def test_patients_of_whom_none_can_be_used_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_patient(tmp_path / "spider", 1, without=201)
    write_tables(tmp_path / "spider", [1])
    assert main(["--spider", str(tmp_path / "spider"), "--out", str(tmp_path / "out")]) == 1
    assert "leaves no patient to train on (1: the mask lacks the discs 201 (L5/S1))" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["spider"]


def test_a_mask_that_does_not_lie_on_its_image_leaves_its_patient_out(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "spider"))
    _, mask, _ = spine()
    write_mha(folder / "masks" / "1_t2.mha", mask, origin_mm=ORIGIN_MM + 5)
    lines = [line for line in (folder / "radiological_gradings.csv").read_text().splitlines() if line[:3] != "2,1"]
    (folder / "radiological_gradings.csv").write_text("\n".join(lines))
    assert main(["--spider", str(folder), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
    left_out = pd.read_csv(tmp_path / "out" / "truth" / "left_out.csv").set_index("patient")["reason"]
    assert left_out[1] == "the mask has another shape or place than its image"
    assert left_out[2] == "radiological_gradings.csv grades 4 of the five lowest discs"
    assert read_volume(folder / "images" / "1_t2.mha").voxels.any()
