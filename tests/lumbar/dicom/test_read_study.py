"""Studies from folders: files that are no good are named, and cost nothing but themselves."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.lumbar.dicom.read_study import read_study
from tests.support.dicom.dicom_writer import make_dataset, place_tags, texture, write_file, write_series
from tests.support.dicom.one_series import AXIAL, SAGITTAL, expected_pixels, kinds, read, words_of


def good_bytes(syntax="explicit"):
    buffer = pydicom.filebase.DicomBytesIO()
    make_dataset(texture((30, 24)), syntax, **place_tags(SAGITTAL, 0)).save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


BAD_FILES = {
    "text": (b"this is no DICOM file\n" * 40, "no-image"),
    "empty": (b"", "empty-file"),
    "preamble only": (good_bytes()[:132], "no-image"),
    "header only": (good_bytes()[: -2 * 30 * 24 - 12], "no-image"),
    "truncated pixels": (good_bytes()[:-300], "unreadable-file"),
    "truncated run lengths": (good_bytes("rle")[:-300], "no-image"),
    "random": (np.random.default_rng(0).bytes(3000), None),
    "zeros": (bytes(3000), None),
    "an image of another kind": (b"\x89PNG\r\n\x1a\n" + bytes(500), None),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_costs_itself_and_is_named(tmp_path, name):
    volume = texture((6, 30, 24))
    write_series(tmp_path / "7", volume, SAGITTAL, numbers=range(2, 8))
    content, kind = BAD_FILES[name]
    (tmp_path / "7" / "1.dcm").write_bytes(content)
    study = read(tmp_path)
    assert [problem.where for problem in study.problems] == ["7/1.dcm"]
    assert kind is None or kinds(study) == [kind]
    assert np.array_equal(study.stacks[0].pixels, expected_pixels(volume))


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "rle", "big"])
@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_damaged_bytes_never_raise(tmp_path, syntax, data):
    content = bytearray(good_bytes(syntax))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(128, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    (tmp_path / "7").mkdir(exist_ok=True)
    (tmp_path / "7" / "1.dcm").write_bytes(content[:end])
    study = read(tmp_path)
    assert study.stacks or study.problems


@pytest.mark.parametrize(
    ("tags", "kind"),
    [
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0}, "not-grey"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "not-grey"),
        ({"Rows": None}, "no-image"),
        ({"Rows": 65535, "Columns": 65535}, "unreadable-file"),
    ],
)
@pytest.mark.parametrize("syntax", ["explicit", "rle"])
def test_images_that_cannot_be_used_are_named(tmp_path, tags, kind, syntax):
    path = write_file(tmp_path / "7" / "1.dcm", texture((30, 24)), syntax)
    dataset = pydicom.dcmread(path)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value) if value is not None else delattr(dataset, keyword)
    dataset.save_as(path)
    study = read(tmp_path)
    assert kinds(study) == [kind] and study.stacks == ()


def test_folders_that_hold_nothing_are_named(tmp_path):
    (tmp_path / "7" / "folder").mkdir(parents=True)
    (tmp_path / "7" / ".hidden").write_bytes(b"x")
    assert kinds(read(tmp_path)) == ["empty-folder"]
    assert kinds(read(tmp_path, series="8")) == ["no-folder"]
    os.symlink(tmp_path / "nowhere", tmp_path / "7" / "1.dcm")
    assert kinds(read(tmp_path)) == ["unreadable-file"]


def test_a_study_keeps_its_good_series(tmp_path):
    write_series(tmp_path / "8", texture((6, 30, 24)), AXIAL)
    study = read_study(tmp_path, "1", [("7", "sagittal_t1"), ("8", "axial_t2")])
    assert kinds(study) == ["no-folder"] and study.problems[0].where == "7" and study.problems[0].study == "1"
    assert study.of_kind("sagittal_t1") == () and len(study.of_kind("axial_t2")) == 1


def test_files_without_preamble_or_meta_group_are_read(tmp_path):
    image = texture((30, 24))
    for name, syntax in (("1", "implicit"), ("2", "explicit"), ("3", "big")):
        dataset = make_dataset(image, syntax, **place_tags(SAGITTAL, int(name)))
        del dataset.file_meta
        encoding = {"implicit_vr": syntax == "implicit", "little_endian": syntax != "big"}
        (tmp_path / "7").mkdir(exist_ok=True)
        pydicom.dcmwrite(tmp_path / "7" / name, dataset, **encoding)
    (stack,) = read(tmp_path).stacks
    assert np.array_equal(stack.pixels, expected_pixels(np.stack([image] * 3)))


def test_bundled_files_of_pydicom_are_read_or_named(tmp_path):
    """Files of many vendors and faults: each gives slices or a Problem, and the fast path pydicom's words."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    sources = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 3_000_000)
    assert len(sources) > 50
    good = 0
    for index, source in enumerate(sources):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / f"1{source.suffix}").symlink_to(source)
        study = read(tmp_path, series=str(index))
        assert study.stacks or study.problems, source.name
        good += bool(study.stacks)
        fast = words_of(source)
        assert fast is None or np.array_equal(fast, words_of(source, fast=False)), source.name
    assert good > 20
