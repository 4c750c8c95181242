"""What a series shows, by its headers alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from tests.support.dicom.dicom_writer import make_multiframe, texture, upright_grid, write_series
from training.data.external import image_size
from training.data.series_kinds import kind_of, series_table

SAGITTAL, AXIAL, CORONAL = [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]
T1, T2, AXIAL_T2 = "Sagittal T1", "Sagittal T2/STIR", "Axial T2"


def write(folder: Path, name: str = "1.dcm", **tags: object) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = FileDataset(name, {}, file_meta=meta, preamble=b"\0" * 128)
    for tag, value in tags.items():
        if isinstance(value, bytes):  # what pydicom itself would refuse
            dataset._dict[Tag(tag)] = RawDataElement(Tag(tag), "DS", len(value), value, 0, False, True)
        else:
            setattr(dataset, tag, value)
    folder.mkdir(parents=True, exist_ok=True)
    dataset.save_as(folder / name)
    return folder


@pytest.mark.parametrize(
    ("cosines", "tags", "kind"),
    [
        (SAGITTAL, {"EchoTime": "9.5"}, T1),
        (SAGITTAL, {"EchoTime": "102"}, T2),
        (SAGITTAL, {"SeriesDescription": "sag stir"}, T2),
        (SAGITTAL, {"SeriesDescription": "SAG T1 FSE", "EchoTime": "102"}, T1),
        (SAGITTAL, {"SeriesDescription": "T1 and T2", "EchoTime": "102"}, T2),
        (SAGITTAL, {}, None),
        (AXIAL, {"EchoTime": "110"}, AXIAL_T2),
        ([1, 0, 0, 0, 0.8, -0.6], {"EchoTime": "110"}, AXIAL_T2),
        (AXIAL, {"EchoTime": "12"}, None),
        (CORONAL, {"EchoTime": "110"}, None),
        (None, {"EchoTime": "110"}, None),
        # T1 is no vertebra, T12 no weighting.
        (SAGITTAL, {"SeriesDescription": "TSE T12-S1", "EchoTime": "100"}, T2),
        (SAGITTAL, {"SeriesDescription": "T1-T12 FSE", "EchoTime": "100"}, T2),
        (AXIAL, {"SeriesDescription": "T2_TSE_TRA L1-S1", "EchoTime": "10"}, AXIAL_T2),
        (AXIAL, {"SeriesDescription": "AXT2FS", "EchoTime": "10"}, AXIAL_T2),
        (SAGITTAL, {"SeriesDescription": "REPEAT2", "EchoTime": "10"}, T1),
        (SAGITTAL, {"SeriesDescription": "SAG", "ProtocolName": "t2_tse_sag"}, T2),
        # Inversion recovery.
        (SAGITTAL, {"SeriesDescription": "tirm_sag", "EchoTime": "38"}, T2),
        (SAGITTAL, {"EchoTime": "45", "InversionTime": "160", "RepetitionTime": "4000"}, T2),
        (SAGITTAL, {"EchoTime": "20", "InversionTime": "800", "RepetitionTime": "2200"}, T1),
        (SAGITTAL, {"SeriesDescription": "SAG T1 FLAIR", "EchoTime": "24"}, T1),
        (SAGITTAL, {"SeriesDescription": "SAG T2 FLAIR", "EchoTime": "110"}, None),
        # Neither.
        (SAGITTAL, {"EchoTime": "18", "RepetitionTime": "3000"}, None),
        (SAGITTAL, {"SeriesDescription": "PD_TSE_SAG", "EchoTime": "18"}, None),
        (SAGITTAL, {"EchoTime": "2.1"}, None),
        (SAGITTAL, {"EchoTime": "8", "ScanningSequence": "GR"}, None),
        (AXIAL, {"SeriesDescription": "loc_haste", "EchoTime": "88"}, None),
        (SAGITTAL, {"SeriesDescription": "T2", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, None),
        (SAGITTAL, {"SeriesDescription": "SAG T2 scout"}, None),
        (SAGITTAL, {"SeriesDescription": "T2", "SliceThickness": "10"}, None),
        (AXIAL, {"SeriesDescription": "ADC map b1000", "EchoTime": "90"}, None),
        (AXIAL, {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"], "EchoTime": "90"}, None),
        (AXIAL, {"ScanningSequence": "EP", "EchoTime": "90"}, None),
        (SAGITTAL, {"SeriesDescription": "T2 MAP", "EchoTime": "90"}, None),
        (SAGITTAL, {"SeriesDescription": "T2", "Modality": "CT"}, None),
        # Values that are none.
        (b"0,1\\1\\0\\0\\0\\-1", {"EchoTime": "100"}, None),
        (b"\\1\\0\\0\\0\\-1 ", {"EchoTime": "100"}, None),
        (b"1 ", {"EchoTime": "100"}, None),
        (SAGITTAL, {"EchoTime": b"n/a "}, None),
        (SAGITTAL, {"EchoTime": b"10\\100"}, None),
        (SAGITTAL, {"EchoTime": b"n/a ", "SeriesDescription": "T2"}, T2),
    ],
)
def test_plane_and_weighting_make_the_kind(tmp_path, cosines, tags, kind):
    given = tags if cosines is None else {**tags, "ImageOrientationPatient": cosines}
    assert kind_of(write(tmp_path / "series", **given)) == kind


def test_the_whole_series_decides(tmp_path):
    for number in range(1, 11):
        cosines = AXIAL if number == 1 else SAGITTAL
        echo: str | bytes = b"n/a " if number == 2 else "100"
        write(tmp_path / "a", f"{number}.dcm", ImageOrientationPatient=cosines, EchoTime=echo)
        plane = (SAGITTAL, AXIAL, CORONAL)[number % 3]
        write(tmp_path / "b", f"{number}.dcm", ImageOrientationPatient=plane, EchoTime="100")
        both = "20" if number % 2 else "100"
        write(tmp_path / "c", f"{number}.dcm", ImageOrientationPatient=SAGITTAL, EchoTime=both, RepetitionTime="3000")
    assert kind_of(tmp_path / "a") == T2
    assert kind_of(tmp_path / "b") is None, "a localiser of three planes"
    assert kind_of(tmp_path / "c") == T2, "proton density and T2, of which the reader takes T2"


def test_what_the_kernel_reads_has_a_kind(tmp_path):
    grid = upright_grid("sagittal", (4, 30, 24))
    write_series(tmp_path / "bare", texture((4, 30, 24)), grid, EchoTime="100")
    for path in (tmp_path / "bare").iterdir():
        path.write_bytes(path.read_bytes()[132:])
    (tmp_path / "enhanced").mkdir()
    whole = make_multiframe(texture((4, 30, 24)), grid)
    echo = pydicom.Dataset()
    echo.EffectiveEchoTime = 100.0
    whole.SharedFunctionalGroupsSequence[0].MREchoSequence = [echo]
    whole.save_as(tmp_path / "enhanced" / "1.dcm", enforce_file_format=True)
    assert kind_of(tmp_path / "bare") == kind_of(tmp_path / "enhanced") == T2
    assert image_size(tmp_path / "enhanced" / "1.dcm") == image_size(tmp_path / "bare" / "1.dcm") == (30, 24)


@pytest.mark.parametrize("content", [b"", b"text", bytes(3000), np.random.default_rng(0).bytes(3000)])
def test_the_size_of_what_is_no_image_is_unknown(tmp_path, content):
    (tmp_path / "1.dcm").write_bytes(content)
    assert image_size(tmp_path / "1.dcm") is None and image_size(tmp_path / "2.dcm") is None


def test_files_that_are_none_are_passed_over(tmp_path):
    series = write(tmp_path / "2" / "22", "9.dcm", ImageOrientationPatient=AXIAL, EchoTime="110")
    (series / "1.dcm").write_text("text")
    (tmp_path / "2" / "23").mkdir()
    (tmp_path / "2" / ".trash").mkdir()
    (tmp_path / "readme.txt").write_text("")
    write(tmp_path / "2" / "24", SeriesDescription="loc_haste", ImageOrientationPatient=AXIAL, EchoTime="88")
    table, left_out = series_table(tmp_path)
    assert table.to_numpy().tolist() == [["2", "22", "Axial T2"]]
    assert left_out == [
        "2/23: neither sagittal T1, sagittal T2 nor axial T2",
        "2/24: neither sagittal T1, sagittal T2 nor axial T2 (a localiser)",
    ]
