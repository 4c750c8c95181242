"""The foreign data set is in the competition's layout, is read without a problem, and says the truth of itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.labels import ROWS, SERIES_KINDS
from kernels.lumbar.run.competition import read_series_table
from tests.support.dicom.dicom_factory import write_foreign_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("foreign")
    return root, write_foreign_dataset(root, studies=3, seed=2, test_studies=1)


def test_tables_have_the_competitions_columns_and_names(dataset):
    root, truth = dataset
    tables = {
        name: pd.read_csv(root / f"{name}.csv") for name in ("train", "train_label_coordinates", "sample_submission")
    }
    assert list(tables["train"].columns) == ["study_id", *ROWS]
    assert set(tables["train"][list(ROWS)].stack()) == {"Normal/Mild", "Moderate", "Severe"}
    points = tables["train_label_coordinates"]
    assert list(points.columns) == ["study_id", "series_id", "instance_number", "condition", "level", "x", "y"]
    assert set(points["level"]) == {"L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"}
    assert "Left Neural Foraminal Narrowing" in set(points["condition"])
    assert not points.duplicated(["study_id", "condition", "level"]).any()
    assert list(tables["sample_submission"]["row_id"]) == [f"{truth.test[0]}_{row}" for row in ROWS]
    for part in ("train", "test"):
        described = pd.read_csv(root / f"{part}_series_descriptions.csv")
        assert set(described["series_description"]) <= set(SERIES_KINDS)


def test_every_file_is_read_and_every_point_lifts_to_its_landmark(dataset):
    root, truth = dataset
    series = read_series_table(root / "train_series_descriptions.csv").series
    points = pd.read_csv(root / "train_label_coordinates.csv", dtype={"study_id": str, "series_id": str})
    for name in truth.train:
        study = read_study(root / "train_images" / name, name, series[name])
        assert study.problems == [] and {stack.kind for stack in study.stacks} == {kind for _, kind in series[name]}
        for point in points[points["study_id"] == name].itertuples():
            row = f"{point.condition} {point.level}".lower().replace(" ", "_").replace("/", "_")
            lifted = study.lift(point.series_id, point.instance_number, point.y, point.x)
            assert np.linalg.norm(lifted - truth.landmarks[name][row]) < 10  # no slice need pass through a landmark


def test_the_same_seed_writes_the_same_data(dataset, tmp_path):
    root, _ = dataset
    write_foreign_dataset(tmp_path, studies=3, seed=2, test_studies=1)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((root / name).read_bytes() == (tmp_path / name).read_bytes() for name in files)
