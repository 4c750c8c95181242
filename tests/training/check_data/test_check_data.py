"""`make check-data`: damage of each kind is found in the right place, and sound data give nothing to find."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from kernels.lumbar.dicom.file_header import read_file_header
from kernels.lumbar.problems import MEANINGS
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.dicom.dicom_writer import write_file
from training.check_data.__main__ import main
from training.check_data.findings import CONSEQUENCES, ERRORS, consequence
from training.check_data.study_headers import examine

LABELS, SERIES, POINTS = "train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training studies and a test study, of another maker than the phantom's, without a fault."""
    folder = tmp_path_factory.mktemp("sound")
    write_foreign_dataset(folder, studies=3, seed=21, test_studies=1)
    return folder


@pytest.fixture
def data(sound: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt: files are links, so that what changes one must replace it."""
    return Path(shutil.copytree(sound, tmp_path / "data", copy_function=os.link))


def checked(data: Path, *more: str) -> tuple[int, pd.DataFrame]:
    """Exit code and findings."""
    out = data.parent / "checked"
    code = main(["--data", str(data), "--out", str(out), "--jobs", "1", *more])
    return code, pd.read_csv(out / "check_data.csv", dtype=str, keep_default_na=False)


def table(data: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Replace a table by a changed one."""
    frame = pd.read_csv(data / name, dtype=str, keep_default_na=False)
    (data / name).unlink()
    change(frame).to_csv(data / name, index=False)


def first_study(data: Path) -> str:
    return str(pd.read_csv(data / LABELS, dtype=str)["study_id"].iloc[0])


def series_of(data: Path, kind: str) -> Path:
    """Folder of the first study's series of a kind."""
    frame = pd.read_csv(data / SERIES, dtype=str)
    chosen = frame[(frame["study_id"] == first_study(data)) & (frame["series_description"] == kind)]
    return data / "train_images" / first_study(data) / str(chosen["series_id"].iloc[0])


def rewrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def exchange(column: str, one: str, other: str) -> Callable[[Path], None]:
    """Exchange two words in the label points of the first study."""

    def spoil(data: Path) -> None:
        def change(frame: pd.DataFrame) -> pd.DataFrame:
            own = frame["study_id"] == first_study(data)
            swapped = frame[column].replace({one: "?", other: one}, regex=True).replace({r"\?": other}, regex=True)
            return frame.assign(**{column: swapped.where(own, frame[column])})

        table(data, POINTS, change)

    return spoil


def point(**values: str) -> Callable[[Path], None]:
    """Change the first label point."""

    def spoil(data: Path) -> None:
        def change(frame: pd.DataFrame) -> pd.DataFrame:
            frame.loc[0, list(values)] = list(values.values())
            return frame

        table(data, POINTS, change)

    return spoil


def repeat_a_point(data: Path) -> None:
    table(data, POINTS, lambda frame: pd.concat([frame, frame.head(1).assign(x="7")]))


def foreign_points(data: Path) -> None:
    table(data, POINTS, lambda frame: pd.concat([frame, frame.head(3).assign(study_id="77")]))


def no_image_has_the_points(data: Path) -> None:
    table(data, POINTS, lambda frame: frame.assign(instance_number="9999"))


def drop_a_column(data: Path) -> None:
    table(data, LABELS, lambda frame: frame.drop(columns="spinal_canal_stenosis_l1_l2"))


def a_study_without_files(data: Path) -> None:
    shutil.rmtree(data / "train_images" / first_study(data))


def a_study_without_row(data: Path) -> None:
    shutil.copytree(data / "train_images" / first_study(data), data / "train_images" / "77")


def a_series_without_row(data: Path) -> None:
    shutil.copytree(series_of(data, "Axial T2"), data / "train_images" / first_study(data) / "77")


def a_series_without_files(data: Path) -> None:
    shutil.rmtree(series_of(data, "Sagittal T1"))


def list_a_series_twice(data: Path) -> None:
    kinds = ["Sagittal T1", "Sagittal T2/STIR"]
    own = [series_of(data, kind).name for kind in kinds]
    row = {"study_id": first_study(data), "series_id": own[0], "series_description": kinds[1]}
    table(data, SERIES, lambda frame: pd.concat([frame, pd.DataFrame([row])]))


def call_axial_slices_sagittal(data: Path) -> None:
    own = series_of(data, "Axial T2").name
    table(
        data,
        SERIES,
        lambda frame: frame.assign(
            series_description=frame["series_description"].where(frame["series_id"] != own, "Sagittal T1")
        ),
    )


def headers(kind: str, change: Callable[[pydicom.Dataset], object], share: float = 1.0) -> Callable[[Path], None]:
    """Change the headers of a series of the first study."""

    def spoil(data: Path) -> None:
        paths = sorted(series_of(data, kind).iterdir())
        for path in paths[: round(share * len(paths))]:
            dataset = pydicom.dcmread(path)
            change(dataset)
            path.unlink()
            dataset.save_as(path)

    return spoil


def call_it_t1(dataset: pydicom.Dataset) -> None:
    dataset.SeriesDescription = "SAG T1 TSE"


def call_it_a_localiser(dataset: pydicom.Dataset) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def without_geometry(dataset: pydicom.Dataset) -> None:
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient


def without_spacing(dataset: pydicom.Dataset) -> None:
    del dataset.PixelSpacing


def in_colour(dataset: pydicom.Dataset) -> None:
    dataset.PhotometricInterpretation = "RGB"


def no_dicom(count: int | None) -> Callable[[Path], None]:
    """Text in place of some files of each training series, or of all."""

    def spoil(data: Path) -> None:
        for series in sorted((data / "train_images").glob("*/*")):
            for path in sorted(series.iterdir())[:count]:
                rewrite(path, b"<html>404</html>" * 20)

    return spoil


def an_empty_file(data: Path) -> None:
    rewrite(min(series_of(data, "Sagittal T1").iterdir()), b"")


def a_cut_file(data: Path) -> None:
    path = min(series_of(data, "Sagittal T1").iterdir())
    dataset = pydicom.dcmread(path)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.decompress()
    pixels = np.frombuffer(dataset.PixelData, "<u2")
    path.unlink()
    write_file(path, pixels.reshape(dataset.Rows, dataset.Columns))
    rewrite(path, path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("spoil", "kind", "code"),
    [
        (exchange("condition", "Left", "Right"), "sides-exchanged", 1),
        (exchange("level", "L3/L4", "L4/L5"), "levels-exchanged", 1),
        (point(x="5000"), "point-outside", 1),
        (point(x="5000"), "point-far-off", 1),
        (point(instance_number="9999"), "annotation-without-image", 0),
        (no_image_has_the_points, "most-points-unused", 1),
        (repeat_a_point, "annotated-twice", 0),
        (foreign_points, "table-remark", 0),
        (point(level="L6/S1"), "unusable-table", 1),
        (drop_a_column, "unusable-table", 1),
        (a_study_without_files, "study-without-files", 1),
        (a_study_without_row, "study-without-row", 0),
        (a_series_without_row, "series-without-row", 0),
        (a_series_without_files, "no-folder", 0),
        (a_series_without_files, "missing-kind", 0),
        (list_a_series_twice, "series-listed-twice", 0),
        (call_axial_slices_sagittal, "kind-contradicted", 0),
        (headers("Sagittal T2/STIR", call_it_t1), "kind-contradicted", 0),
        (headers("Axial T2", call_it_a_localiser), "kind-contradicted", 0),
        (headers("Sagittal T1", without_geometry), "assumed-geometry", 0),
        (headers("Sagittal T1", without_geometry, 0.3), "no-geometry", 0),
        (headers("Sagittal T1", without_spacing), "assumed-spacing", 0),
        (headers("Sagittal T1", in_colour), "not-grey", 0),
        (no_dicom(1), "no-image", 0),
        (no_dicom(None), "most-files-unreadable", 1),
        (an_empty_file, "empty-file", 0),
        (a_cut_file, "unreadable-file", 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_damage_is_found_and_its_consequence_said(
    data: Path, spoil: Callable[[Path], None], kind: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    study = first_study(data)
    spoil(data)
    found, findings = checked(data)
    assert kind in set(findings["kind"]) and found == code
    said = capsys.readouterr()
    assert f"{'ERROR' if kind in ERRORS else 'warning'} {kind}: " in said.out and consequence(kind) in said.out
    assert ("training would stop or learn what is wrong" in said.err) == (code == 1)
    about = set(findings["study"][findings["kind"] == kind])
    assert about <= {study, "77", ""} or kind == "no-image" or kind == "annotation-without-image"


def test_a_remark_is_filed_under_the_table_that_it_is_about(data: Path) -> None:
    foreign_points(data)
    findings = checked(data)[1]
    assert findings["where"][findings["kind"] == "table-remark"].tolist() == [POINTS]


def test_sound_data_give_nothing_to_find(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "checked"
    assert main(["--data", str(sound), "--out", str(out), "--jobs", "1"]) == 0
    assert (out / "check_data.csv").read_text() == "study,where,kind,detail\n"
    said = capsys.readouterr().out
    assert "nothing is wrong" in said and "ERROR" not in said and "warning" not in said
    assert "Sagittal T1, 4 series" in said and "pixel, mm" in said and "bits, MONOCHROME2" in said
    listed = pd.read_csv(out / "series.csv", dtype=str, keep_default_na=False)
    written = {path.parent.name: path for path in sound.glob("t*_images/*/*/*.dcm")}
    assert set(listed["series"]) == set(written) and set(listed["split"]) == {"train", "test"}
    for row in listed.itertuples():
        dataset = pydicom.dcmread(written[row.series])
        assert row.size == f"{dataset.Columns} × {dataset.Rows}" and row.syntax == dataset.file_meta.TransferSyntaxUID
        assert float(row.spacing_mm) == pytest.approx(float(dataset.PixelSpacing[1]), abs=1e-4)
        assert int(row.files) == int(row.images) == int(row.slices) == len(list(written[row.series].parent.iterdir()))
        assert row.order in ("to patient left", "to patient right", "to the feet", "to the head", "mixed")
    assert list(out.glob("*.png")) == []


def test_several_processes_find_the_same(data: Path) -> None:
    exchange("condition", "Left", "Right")(data)
    alone = checked(data)[1]
    assert main(["--data", str(data), "--out", str(data.parent / "two"), "--jobs", "2"]) == 1
    assert (data.parent / "two" / "check_data.csv").read_text() == (
        data.parent / "checked" / "check_data.csv"
    ).read_text()
    assert len(alone) and (data.parent / "two" / f"sides-exchanged_{first_study(data)}.png").is_file()


def test_contradictory_labels_can_be_accepted_but_no_table_that_stops_training(data: Path) -> None:
    exchange("condition", "Left", "Right")(data)
    assert checked(data)[0] == 1 and checked(data, "--anyway")[0] == 0
    drop_a_column(data)
    assert checked(data, "--anyway")[0] == 1


def test_test_studies_alone_and_plain_folders_are_checked_too(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (LABELS, SERIES, POINTS):
        (data / name).unlink()
    shutil.rmtree(data / "train_images")
    assert checked(data)[0] == 0 and "1 studies" in capsys.readouterr().out
    table(data, "test_series_descriptions.csv", lambda frame: frame.assign(study_id="77"))
    code, findings = checked(data)
    assert code == 0 and set(findings["kind"]) == {"no-series", "no-folder", "series-without-row"}
    table(data, "test_series_descriptions.csv", lambda frame: frame.drop(columns="series_id"))
    assert checked(data)[0] == 1
    plain = data / "test_images"
    for path in plain.glob("*/*/*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.SeriesDescription = "T2"
        path.unlink()
        dataset.save_as(path)
    shutil.rmtree(data.parent / "checked")
    code, findings = checked(plain)
    assert code == 0 and set(findings["kind"]) == {"missing-kind"}, "those called T2 that would be T1"


def test_wrong_usage_is_one_sentence_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for folder, words in ((tmp_path / "none", "is no folder"), (tmp_path, "no STUDY/SERIES/*.dcm")):
        assert main(["--data", str(folder), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert said.startswith("nothing was checked: ") and words in said and "DATA=" in said and said.count("\n") == 1
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2


def test_every_kind_has_one_consequence() -> None:
    assert not set(CONSEQUENCES) & set(MEANINGS) and set(MEANINGS) | set(CONSEQUENCES) >= ERRORS


def test_a_header_is_the_same_by_its_first_bytes(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted(sound.glob("train_images/*/*/*.dcm"))[::20]
    before = [read_file_header(path) for path in paths]
    monkeypatch.setattr("kernels.lumbar.dicom.file_header.HEAD_BYTES", 100)
    assert [read_file_header(path) for path in paths] == before and before[0].has_pixels


def test_an_odd_study_ends_nothing(monkeypatch: pytest.MonkeyPatch, sound: Path) -> None:
    def fails(*_: object) -> None:
        raise ValueError("odd")

    monkeypatch.setattr("training.check_data.study_headers._examine", fails)
    (problem,) = examine(type("Task", (), {"study": "7"})()).problems  # type: ignore[arg-type]
    assert (problem.kind, problem.detail) == ("study-unreadable", "ValueError: odd")
