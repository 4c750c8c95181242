"""What a series shows, by its header alone."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from training.data.series_kinds import kind_of, series_table

SAGITTAL, AXIAL, CORONAL = [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]


def write(folder: Path, name: str = "1.dcm", **tags: object) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = FileDataset(name, {}, file_meta=meta, preamble=b"\0" * 128)
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    folder.mkdir(parents=True, exist_ok=True)
    dataset.save_as(folder / name)
    return folder


@pytest.mark.parametrize(
    ("cosines", "tags", "kind"),
    [
        (SAGITTAL, {"EchoTime": "9.5"}, "Sagittal T1"),
        (SAGITTAL, {"EchoTime": "102"}, "Sagittal T2/STIR"),
        (SAGITTAL, {"SeriesDescription": "sag stir"}, "Sagittal T2/STIR"),
        (SAGITTAL, {"SeriesDescription": "SAG T1 FSE", "EchoTime": "102"}, "Sagittal T1"),
        (SAGITTAL, {"SeriesDescription": "T1 and T2", "EchoTime": "102"}, "Sagittal T2/STIR"),
        (SAGITTAL, {}, None),
        (AXIAL, {"EchoTime": "110"}, "Axial T2"),
        ([1, 0, 0, 0, 0.8, -0.6], {"EchoTime": "110"}, "Axial T2"),
        (AXIAL, {"EchoTime": "12"}, None),
        (CORONAL, {"EchoTime": "110"}, None),
        (None, {"EchoTime": "110"}, None),
    ],
)
def test_plane_and_weighting_make_the_kind(tmp_path, cosines, tags, kind):
    given = tags if cosines is None else {**tags, "ImageOrientationPatient": cosines}
    assert kind_of(write(tmp_path / "series", **given)) == kind


def test_files_that_are_none_are_passed_over(tmp_path):
    series = write(tmp_path / "2" / "22", "9.dcm", ImageOrientationPatient=AXIAL, EchoTime="110")
    (series / "1.dcm").write_text("text")
    (tmp_path / "2" / "23").mkdir()
    (tmp_path / "readme.txt").write_text("")
    table, left_out = series_table(tmp_path)
    assert table.to_numpy().tolist() == [["2", "22", "Axial T2"]]
    assert left_out == ["2/23: neither sagittal T1, sagittal T2 nor axial T2"]
