"""Studies in shards: the bytes of one run, whatever the number of shards, and nothing merged that is not whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pydicom
import pytest

from kernels.lumbar import predict
from kernels.lumbar.labels import ROWS
from training.workflow import shards
from training.workflow.shards import ShardError, merge, split


def answer(folders, weights) -> None:
    for folder in folders:
        given = ["--competition", str(folder / "competition"), "--weights", str(weights)]
        assert predict.main([*given, "--out", str(folder / "out")]) == 0


@pytest.fixture(scope="module")
def merged(ten_studies, seeing, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("merged")
    answer(split(ten_studies, out, 2), seeing)
    merge(out)
    return out


def test_two_shards_write_the_bytes_of_one_run(whole, merged):
    assert (merged / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()
    expected = json.loads((whole / "run_report.json").read_text())
    report = json.loads((merged / "run_report.json").read_text())
    assert len(report["shards"]) == 2
    for key in ("format", "manifest_sha256", "studies", "members_used", "fallbacks", "problem_counts"):
        assert report[key] == expected[key], key
    tables = [pd.read_csv(out / "landmarks.csv", dtype={"study_id": str}) for out in (whole, merged)]
    pd.testing.assert_frame_equal(*tables)


def test_shards_hold_whole_batches_of_the_largest_size(ten_studies, tmp_path):
    first, second = split(ten_studies, tmp_path, 2)
    counts = [len(pd.read_csv(one / "competition" / "sample_submission.csv")) // len(ROWS) for one in (first, second)]
    assert counts == [8, 2]


def test_a_second_split_keeps_what_is_answered_and_another_one_does_not(ten_studies, merged, tmp_path):
    out = Path(shutil.copytree(merged, tmp_path / "out", symlinks=True))
    kept = [path.stat().st_mtime_ns for path in sorted(out.rglob("*")) if path.name != "sample_submission.csv"]
    split(ten_studies, out, 2)
    assert kept == [path.stat().st_mtime_ns for path in sorted(out.rglob("*")) if path.name != "sample_submission.csv"]
    split(ten_studies, out, 1)
    assert [path.name for path in (out / "shards").iterdir()] == ["0000"]
    with pytest.raises(ShardError, match="0000 of 1 shards has no run_report.json"):
        merge(out)


def lose_a_row(data: Path) -> None:
    table = pd.read_csv(data / "test_series_descriptions.csv", dtype=str)
    table.iloc[1:].to_csv(data / "test_series_descriptions.csv", index=False)


def lose_a_file(data: Path) -> None:
    next(path for path in sorted((data / "test_images").rglob("*")) if path.is_file()).unlink()


def other_kernel(data: Path) -> None:
    shards.PACKAGE = data / "lumbar"


@pytest.mark.parametrize("change", [lose_a_row, lose_a_file, other_kernel])
def test_answers_of_other_files_or_another_kernel_are_forgotten(ten_studies, tmp_path, monkeypatch, change):
    data, out = Path(shutil.copytree(ten_studies, tmp_path / "data")), tmp_path / "out"
    monkeypatch.setattr(shards, "PACKAGE", shards.PACKAGE)
    package = Path(shutil.copytree(shards.PACKAGE, data / "lumbar"))
    (package / "further.py").write_text('"""Another module."""')
    for folder in split(data, out, 2):
        (folder / "out").mkdir()
    split(data, out, 2)
    assert len(list(out.glob("shards/*/out"))) == 2
    change(data)
    split(data, out, 2)
    assert len(list(out.glob("shards/*/out"))) == (0 if change is other_kernel else 1)


def test_studies_without_a_usable_series_are_asked_for_all_the_same(tmp_path, ten_studies, monkeypatch):
    images = Path(shutil.copytree(ten_studies / "test_images", tmp_path / "images"))
    first, *others = sorted(path.name for path in images.iterdir())
    rows = [(study, "1", "Axial T2") for study in others]
    monkeypatch.setattr(shards, "series_table", lambda path: (pd.DataFrame(rows, columns=list(shards.COLUMNS)), []))
    folders = split(images, tmp_path / "out", 2)
    asked = pd.read_csv(tmp_path / "out" / "sample_submission.csv", dtype=str)["row_id"]
    assert first in set(asked.str.partition("_")[0]) and len(asked) == 10 * len(ROWS)
    assert shards.without_series(folders) == 1


def test_names_of_studies_survive_the_split_and_the_merge(ten_studies, whole, seeing, tmp_path):
    names = ["PAT_001", "PAT_002", "NA", "007", "123.0", "None", "a_l1_l2", "x_y_z", "8", "true"]
    studies = sorted(path.name for path in (ten_studies / "test_images").iterdir())
    data = tmp_path / "data"
    (data / "test_images").mkdir(parents=True)
    for name, study in zip(names, studies, strict=True):
        (data / "test_images" / name).symlink_to(ten_studies / "test_images" / study)
    for table in ("sample_submission.csv", "test_series_descriptions.csv"):
        text = (ten_studies / table).read_text()
        for name, study in zip(names, studies, strict=True):
            text = text.replace(f"\n{study}", f"\n{name}")
        (data / table).write_text(text)
    folders = split(data, tmp_path / "out", 2)
    assert shards.without_series(folders) == 0
    answer(folders, seeing)
    assert merge(tmp_path / "out")["studies"] == {"asked": 10, "graded": 10}
    merged = (tmp_path / "out" / "submission.csv").read_text()
    for name, study in zip(names, studies, strict=True):
        merged = merged.replace(f"\n{name}_", f"\n{study}_")
    assert merged == (whole / "submission.csv").read_text()


@pytest.mark.parametrize("name", ["sample_submission.csv", "test_series_descriptions.csv"])
def test_an_empty_table_is_named(ten_studies, tmp_path, name):
    data = Path(shutil.copytree(ten_studies, tmp_path / "data"))
    (data / name).write_text("")
    with pytest.raises(ShardError, match=f"{name} cannot be read"):
        split(data, tmp_path / "out", 1)


def test_studies_without_tables_get_them_and_what_fits_no_kind_is_said(ten_studies, tmp_path, capsys):
    with pytest.raises(ShardError, match="holds no study"):
        split(ten_studies / "test_images", tmp_path / "bare", 1)
    images = Path(shutil.copytree(ten_studies / "test_images", tmp_path / "images"))
    table = pd.read_csv(ten_studies / "test_series_descriptions.csv", dtype=str)
    for row in table.itertuples():
        path = next((images / row.study_id / row.series_id).iterdir())
        dataset = pydicom.dcmread(path)
        dataset.SeriesDescription = row.series_description
        dataset.save_as(path)
    (folder,) = split(images, tmp_path / "out", 1)
    found = pd.read_csv(folder / "competition" / "test_series_descriptions.csv", dtype=str)
    order = ["study_id", "series_id"]
    expected = table[found.columns].sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(found.sort_values(order, ignore_index=True), expected)
    assert capsys.readouterr().err.count("left out") == len(table), "those of the bare folder alone"


@pytest.mark.parametrize("count", [0, 3])
def test_more_shards_than_batches_are_refused(ten_studies, tmp_path, count):
    with pytest.raises(ShardError, match=f"10 studies make 1 to 2 shards, not {count}"):
        split(ten_studies, tmp_path, count)


def spoil(change):
    def spoilt(out: Path) -> None:
        path = out / "shards" / "0001" / "out" / "submission.csv"
        change(path, pd.read_csv(path, dtype=str))

    return spoilt


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (spoil(lambda path, frame: frame.iloc[1:].to_csv(path, index=False)), "not those of the sample"),
        (spoil(lambda path, frame: frame.assign(severe="2").to_csv(path, index=False)), "no submission"),
        (lambda out: (out / "shards" / "0000" / "out" / "run_report.json").unlink(), "0000 of 2 shards has no"),
    ],
)
def test_what_is_not_whole_is_not_merged(merged, tmp_path, change, sentence):
    out = Path(shutil.copytree(merged, tmp_path / "out", symlinks=True))
    (out / "submission.csv").unlink()
    change(out)
    with pytest.raises(ShardError, match=sentence):
        merge(out)
    assert not (out / "submission.csv").exists()


def test_answers_of_different_weights_are_not_mixed(merged, tmp_path):
    out = Path(shutil.copytree(merged, tmp_path / "out", symlinks=True))
    path = out / "shards" / "0001" / "out" / "run_report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"manifest_sha256": "other"}))
    with pytest.raises(ShardError, match="different weights"):
        merge(out)


def test_foreign_images_of_any_shard_are_said_once_with_all_studies():
    like, unlike = ({"studies": 8, "means": {}, "unlike": said} for said in ([], ["median grey 20, in training 80"]))
    merged = shards._domain([{"Axial T2": like}, {"Axial T2": unlike, "Sagittal T1": like}, {}])
    assert merged == {"Axial T2": unlike | {"studies": 16}, "Sagittal T1": like}
