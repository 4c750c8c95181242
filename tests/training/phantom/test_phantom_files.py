"""The phantom's files: layout, tables, DICOM headers, pixels, and that a seed decides them all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from kernels.kaggle.contents import TABLES
from kernels.lumbar.labels import CONDITIONS, LEVELS, ROWS, SEVERITIES
from training.phantom.dataset import Options, make_dataset
from training.phantom.rle import encode_rle

OPTIONS = Options(train=3, test=2, seed=11, scale=0.25)
ABSENT_TAGS = ("SOPClassUID", "Modality", "Manufacturer", "ImageType", "BodyPartExamined", "EchoTime")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "data"
    make_dataset(folder, OPTIONS, jobs=1)
    return folder


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_layout(data: Path) -> None:
    assert {path.name for path in data.iterdir()} == {*TABLES, "train_images", "test_images", "truth"}
    for split, count in (("train", OPTIONS.train), ("test", OPTIONS.test)):
        series = pd.read_csv(data / f"{split}_series_descriptions.csv")
        assert list(series.columns) == ["study_id", "series_id", "series_description"]
        assert set(series["series_description"]) <= {"Sagittal T1", "Sagittal T2/STIR", "Axial T2"}
        assert series["study_id"].nunique() == count
        on_disk = {(int(p.parent.name), int(p.name)) for p in (data / f"{split}_images").glob("*/*")}
        assert on_disk == set(zip(series["study_id"], series["series_id"], strict=True))
        for study_id, series_id in on_disk:
            names = [p.stem for p in (data / f"{split}_images" / str(study_id) / str(series_id)).iterdir()]
            assert names and all(name.isdigit() for name in names)


def test_competition_tables(data: Path) -> None:
    train = pd.read_csv(data / "train.csv")
    assert train.columns[0] == "study_id" and train.columns[1] == "spinal_canal_stenosis_l1_l2"
    assert set(train.columns[1:]) == set(ROWS) and len(train) == OPTIONS.train
    assert set(train[list(ROWS)].stack().dropna()) <= {"Normal/Mild", "Moderate", "Severe"}
    submission = pd.read_csv(data / "sample_submission.csv")
    assert list(submission.columns) == ["row_id", *SEVERITIES]
    tests = sorted(pd.read_csv(data / "test_series_descriptions.csv")["study_id"].unique())
    assert list(submission["row_id"]) == [f"{study}_{row}" for study in tests for row in ROWS]
    assert np.all(submission[list(SEVERITIES)] == 1 / 3)
    clicks = pd.read_csv(data / "train_label_coordinates.csv")
    assert list(clicks.columns) == [
        "study_id",
        "series_id",
        "instance_number",
        "condition",
        "level",
        "x",
        "y",
    ]
    assert set(clicks["condition"]) == {condition.replace("_", " ").title() for condition in CONDITIONS}
    assert set(clicks["level"]) == {"L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"}
    for study, series, number in clicks[["study_id", "series_id", "instance_number"]].itertuples(index=False):
        assert (data / "train_images" / str(study) / str(series) / f"{number}.dcm").is_file()


def test_truth(data: Path) -> None:
    labels = pd.read_csv(data / "truth" / "labels.csv").set_index("study_id")
    assert len(labels) == OPTIONS.train + OPTIONS.test and not labels.isna().any(axis=None)
    train = pd.read_csv(data / "train.csv").set_index("study_id")
    known = train.notna()
    assert (labels.loc[train.index, train.columns].where(known) == train.where(known)).where(known, True).all(axis=None)
    solution = pd.read_csv(data / "truth" / "solution.csv")
    assert list(solution["row_id"]) == list(pd.read_csv(data / "sample_submission.csv")["row_id"])
    one_hot = solution[list(SEVERITIES)].to_numpy()
    assert np.all(one_hot.sum(axis=1) == 1)
    assert np.all(solution["sample_weight"] == one_hot @ [1, 2, 4])
    landmarks = pd.read_csv(data / "truth" / "landmarks.csv")
    assert list(landmarks.columns) == ["study_id", "split", "condition", "level", "x_mm", "y_mm", "z_mm"]
    assert len(landmarks) == 25 * (OPTIONS.train + OPTIONS.test)
    assert set(landmarks["level"]) == set(LEVELS) and set(landmarks["condition"]) == set(CONDITIONS)


def test_clicks_match_the_truth_through_the_headers(data: Path) -> None:
    """A click's pixel, taken to patient mm by the file's own header, lies within jitter and slice distance."""
    truth = {
        (one["study_id"], one["condition"], one["level"]): np.array([one["x_mm"], one["y_mm"], one["z_mm"]])
        for one in pd.read_csv(data / "truth" / "landmarks.csv").to_dict("records")
    }
    for one in pd.read_csv(data / "train_label_coordinates.csv").to_dict("records"):
        study, series, name = one["study_id"], one["series_id"], f"{one['instance_number']}.dcm"
        header = pydicom.dcmread(data / "train_images" / str(study) / str(series) / name, stop_before_pixels=True)
        direction = np.array(header.ImageOrientationPatient, float)
        row_mm, column_mm = (float(value) for value in header.PixelSpacing)
        point = np.array(header.ImagePositionPatient, float) + one["x"] * column_mm * direction[:3]
        point += one["y"] * row_mm * direction[3:]
        condition, level = one["condition"].lower().replace(" ", "_"), one["level"].lower().replace("/", "_")
        away = point - truth[study, condition, level]
        normal = np.cross(direction[:3], direction[3:])
        assert abs(away @ normal) < 12.0
        assert np.linalg.norm(away - (away @ normal) * normal) < 5.0


def test_headers(data: Path) -> None:
    windows: dict[Path, set[float]] = {}
    for path in data.glob("*_images/*/*/*.dcm"):
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        study, series = path.parent.parent.name, path.parent.name
        meta = dataset.file_meta
        assert meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.4.1"
        assert meta.TransferSyntaxUID == pydicom.uid.RLELossless
        assert meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID == f"{study}.1.{path.stem}"
        assert (dataset.StudyInstanceUID, dataset.PatientID) == (study, study)
        assert dataset.SeriesInstanceUID == f"{study}.{series}"
        assert str(dataset.InstanceNumber) == path.stem
        assert not any(tag in dataset for tag in ABSENT_TAGS)
        assert (dataset.BitsAllocated, dataset.BitsStored, dataset.PixelRepresentation) == (16, 12, 0)
        windows.setdefault(path.parent, set()).add(float(dataset.WindowCenter))
    assert any(len(values) > 1 for values in windows.values())


def test_pixels_decode_and_show_something(data: Path) -> None:
    for folder in data.glob("*_images/*/*"):
        dataset = pydicom.dcmread(next(iter(sorted(folder.iterdir()))))
        image = dataset.pixel_array
        assert image.shape == (dataset.Rows, dataset.Columns) and image.dtype == np.uint16
        assert 100 < image.max() <= 4095 and image.std() > 20


@pytest.mark.parametrize("kind", ["noise", "flat", "runs", "narrow"])
def test_rle_is_bit_equal_through_pydicom(kind: str) -> None:
    rng = np.random.default_rng(0)
    images = {
        "noise": rng.integers(0, 4096, (37, 301)),
        "flat": np.zeros((5, 700)),
        "runs": np.repeat(rng.integers(0, 4096, (40, 40)), rng.integers(1, 200, 40), axis=1),
        "narrow": rng.integers(0, 3, (50, 1)) * 300,
    }
    image = images[kind].astype(np.uint16)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.PixelRepresentation = 16, 16, 0
    dataset.PixelData = pydicom.encaps.encapsulate([encode_rle(image)])
    dataset["PixelData"].VR = "OB"
    assert np.array_equal(dataset.pixel_array, image)


def test_seed_decides_all_and_jobs_nothing(data: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path / "again", OPTIONS, jobs=2)
    assert digest(tmp_path / "again") == digest(data)


def test_interrupted_data_set_is_continued(data: Path, tmp_path: Path) -> None:
    whole = digest(data)
    folder = tmp_path / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.phantom.dataset.write_competition_tables", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_dataset(folder, OPTIONS, jobs=1)
    assert not (folder / "sample_submission.csv").exists()
    with pytest.raises(FileExistsError):
        make_dataset(folder, OPTIONS, jobs=1)
    other = rf"holds a phantom of other options \(.*train {OPTIONS.train}, test {OPTIONS.test}, .*: remove it"
    with pytest.raises(FileExistsError, match=other):
        make_dataset(folder, Options(train=1, test=1), jobs=1, keep=True)
    make_dataset(folder, OPTIONS, jobs=1, keep=True)
    assert digest(folder) == whole


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
