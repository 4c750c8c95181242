"""What a header says is used, part by part; what it lacks has a usual value and a name."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from kernels.lumbar.dicom.study import Study
from tests.support.dicom.dicom_writer import (
    make_multiframe,
    place_tags,
    texture,
    upright_grid,
    write_file,
    write_series,
)
from tests.support.dicom.one_series import kinds, read

GRID = upright_grid("sagittal", (6, 30, 24), (0.8, 0.7), 4.0, (3, -2, 5))
AXIAL = upright_grid("axial", (6, 30, 24), (0.8, 0.7), 4.0, (3, -2, 5), (12, 0, 0))
VOLUME = texture((6, 30, 24))


def clean(folder: Path, grid=GRID, kind: str = "sagittal_t1", volume: np.ndarray = VOLUME) -> Study:
    write_series(folder / "clean" / "7", volume, grid)
    return read(folder / "clean", kind)


# --- partial geometry


def location(grid, index: int) -> float:
    return float((grid.origin + index * grid.step) @ np.cross(grid.column, grid.row))


@pytest.mark.parametrize(("grid", "kind"), [(GRID, "sagittal_t1"), (AXIAL, "axial_t2")])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("has_location", [False, True])
@pytest.mark.parametrize("position", [None, ["0", "0", "0"]])
def test_without_positions_the_orientation_is_used_with_slice_locations_or_the_files_order(
    tmp_path, grid, kind, turned, has_location, position
):
    true = clean(tmp_path, grid, kind).stacks[0]
    for index, image in enumerate(VOLUME):
        tags = place_tags(grid, index)
        if turned:
            image = image[::-1, ::-1]
            tags["ImageOrientationPatient"] = [f"{-float(one):.9f}" for one in tags["ImageOrientationPatient"]]
        tags["ImagePositionPatient"] = position
        tags["SliceLocation"] = f"{location(grid, index):.6f}" if has_location else None
        # With locations the order of the numbers must not matter.
        number = 6 - index if has_location else index + 1
        write_file(tmp_path / "7" / f"{number}.dcm", image, InstanceNumber=number, **tags)
    study = read(tmp_path, kind)
    (stack,) = study.stacks
    assert stack.assumed and set(kinds(study)) == {"assumed-geometry"}
    assert np.array_equal(stack.pixels, true.pixels)
    assert np.diff(stack.positions_mm) == pytest.approx([4.0 if has_location else 4.5] * 5, abs=1e-4)
    if has_location:
        assert stack.positions_mm == pytest.approx(true.positions_mm, abs=1e-3)
    steps = [one.normal @ other.normal for one, other in zip(stack.planes, true.planes, strict=True)]
    assert steps == pytest.approx([1.0] * 6, abs=1e-6)


def test_without_orientations_the_positions_still_order_the_slices(tmp_path):
    true = clean(tmp_path).stacks[0]
    for index, number in enumerate((4, 1, 6, 2, 5, 3)):
        tags = place_tags(GRID, index) | {"ImageOrientationPatient": None}
        write_file(tmp_path / "7" / f"{number}.dcm", VOLUME[index], InstanceNumber=number, **tags)
    study = read(tmp_path)
    (stack,) = study.stacks
    assert kinds(study) == ["assumed-geometry"] and stack.assumed
    assert np.array_equal(stack.pixels, true.pixels)
    assert stack.positions_mm == pytest.approx(true.positions_mm, abs=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_one_missing_position_is_that_of_its_slice_location(tmp_path, sign):
    true = clean(tmp_path).stacks[0]
    for index, image in enumerate(VOLUME):
        tags = place_tags(GRID, index) | {"SliceLocation": f"{sign * location(GRID, index):.6f}"}
        if index == 2:
            tags["ImagePositionPatient"] = None
        write_file(tmp_path / "7" / f"{index + 1}.dcm", image, **tags)
    study = read(tmp_path)
    assert [(one.kind, one.where) for one in study.problems] == [("assumed-geometry", "7/3.dcm")]
    (stack,) = study.stacks
    assert not stack.assumed and np.array_equal(stack.pixels, true.pixels)
    assert stack.planes[2].origin_mm == pytest.approx(true.planes[2].origin_mm, abs=1e-4)


def test_one_place_many_times_is_one_slice(tmp_path):
    for number in range(1, 6):
        write_file(
            tmp_path / "7" / f"{number}.dcm", texture((30, 24), number), SliceLocation="3", InstanceNumber=number
        )
    study = read(tmp_path)
    assert len(study.stacks[0].planes) == 1 and set(kinds(study)) <= {"duplicate-slice", "other-contrast"}


# --- frames


def frames(change) -> pydicom.Dataset:
    dataset = make_multiframe(VOLUME, GRID)
    for index, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        scale = pydicom.Dataset()
        scale.RescaleSlope, scale.RescaleIntercept = "2", str(-10 * index)
        group.PixelValueTransformationSequence = [scale]
    change(dataset)
    return dataset


def put(dataset: pydicom.Dataset, keyword: str, text: bytes) -> None:
    tag = Tag(keyword)
    dataset._dict[tag] = RawDataElement(tag, "DS", len(text), text, 0, False, True)


def of_frame(sequence: str, keyword: str, text: bytes):
    return lambda whole: put(whole.PerFrameFunctionalGroupsSequence[2][sequence][0], keyword, text)


def drop_place(whole) -> None:
    del whole.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence


def drop_group(whole) -> None:
    whole.PerFrameFunctionalGroupsSequence = list(whole.PerFrameFunctionalGroupsSequence)[:-1]


@pytest.mark.parametrize(
    ("change", "named", "lost"),
    [
        (of_frame("PixelValueTransformationSequence", "RescaleSlope", b"NaN "), ["bad-rescale"], None),
        (of_frame("PixelValueTransformationSequence", "RescaleSlope", b"0 "), ["bad-rescale"], None),
        (of_frame("PixelValueTransformationSequence", "RescaleIntercept", b"word"), ["bad-rescale"], None),
        (of_frame("PixelValueTransformationSequence", "RescaleIntercept", b"1e8 "), ["bad-rescale"], None),
        (of_frame("PlanePositionSequence", "ImagePositionPatient", b"left\\2\\3"), ["no-geometry"], 3),
        (of_frame("PlanePositionSequence", "ImagePositionPatient", b"1e9\\2\\3 "), ["no-geometry"], 3),
        (of_frame("PlanePositionSequence", "ImagePositionPatient", b"1\\2 "), ["no-geometry"], 3),
        (drop_place, ["no-geometry"], 3),
        (drop_group, ["multi-frame", "no-geometry"], 6),
    ],
)
def test_one_bad_frame_costs_one_frame(tmp_path, change, named, lost):
    for name, one in (("a", lambda whole: None), ("b", change)):
        (tmp_path / name / "7").mkdir(parents=True)
        with warnings.catch_warnings(action="ignore"):
            frames(one).save_as(tmp_path / name / "7" / "1.dcm", enforce_file_format=True)
    (true,), study = read(tmp_path / "a").stacks, read(tmp_path / "b")
    (stack,) = study.stacks
    assert kinds(study) == named and (lost is None or f"frame {lost}" in study.problems[-1].where)
    left = [number for number in range(1, 7) if number != lost]
    assert stack.instances == tuple(left)
    wanted = true.pixels[[number - 1 for number in left]].astype(int)
    assert np.abs(stack.pixels - wanted).mean(axis=(1, 2)).max() < 4


# --- rescale


ODD_SCALES = [("1e6", "0"), ("1e3", "0"), ("1e-6", "0"), ("1", "1e7"), ("1", "-1e7"), ("-1", "0"), ("2", "NaN")]


@pytest.mark.parametrize("odd", ODD_SCALES)
@pytest.mark.parametrize("others", [("1", "0"), ("2.5", "-100")])
def test_one_rescale_that_contradicts_the_others_is_replaced_and_named(tmp_path, odd, others):
    for folder, is_odd in (("a", False), ("b", True)):
        for index, image in enumerate(VOLUME):
            scale = odd if is_odd and index == 3 else others
            tags = {**place_tags(GRID, index), "RescaleSlope": scale[0], "RescaleIntercept": scale[1]}
            with warnings.catch_warnings(action="ignore"):
                write_file(tmp_path / folder / "7" / f"{index + 1}.dcm", image, **tags)
    study = read(tmp_path / "b")
    assert [(one.kind, one.where) for one in study.problems] == [("bad-rescale", "7/4.dcm")]
    assert np.array_equal(study.stacks[0].pixels, read(tmp_path / "a").stacks[0].pixels)


def test_rescales_that_fit_each_other_are_left_alone(tmp_path):
    for index, image in enumerate(VOLUME):
        slope = (1.0, 0.02, 30.0, 1.0, 2.0, 0.5)[index]
        black = index == 0
        tags = {**place_tags(GRID, index), "RescaleSlope": f"{slope}", "RescaleIntercept": "5"}
        write_file(
            tmp_path / "7" / f"{index + 1}.dcm", (0 * image if black else image / slope * 0.3).astype("u2"), **tags
        )
    assert read(tmp_path).problems == []


# --- what is missing beside the pixels


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "rle"])
@pytest.mark.parametrize(
    "keyword", ["PixelRepresentation", "BitsStored", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation"]
)
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_element_of_the_pixels_has_its_usual_value(tmp_path, keyword, value, syntax):
    true = clean(tmp_path).stacks[0]
    paths = write_series(tmp_path / "7", VOLUME, GRID, syntax=syntax)
    for path in paths:
        dataset = pydicom.dcmread(path)
        if value is None:
            del dataset[keyword]
        else:
            dataset[keyword].value = value
        with warnings.catch_warnings(action="ignore"):
            dataset.save_as(path)
    study = read(tmp_path)
    assert np.array_equal(study.stacks[0].pixels, true.pixels)
    assert set(kinds(study)) == {"missing-element"} and keyword in study.problems[0].detail


@pytest.mark.parametrize("left", range(8))
def test_a_compressed_file_may_end_behind_its_last_fragment(tmp_path, left):
    true = clean(tmp_path).stacks[0]
    for path in write_series(tmp_path / "7", VOLUME, GRID, syntax="rle"):
        path.write_bytes(path.read_bytes()[: left - 8])
    study = read(tmp_path)
    assert np.array_equal(study.stacks[0].pixels, true.pixels)
    # With four bytes left the delimiter is known as such.
    assert kinds(study) == ["missing-delimiter"] * (6 if left < 4 else 0)


def test_a_file_cut_inside_of_a_fragment_is_no_image(tmp_path):
    (path,) = write_series(tmp_path / "7", VOLUME[:1], GRID, syntax="rle")
    path.write_bytes(path.read_bytes()[:-9])
    assert kinds(read(tmp_path)) == ["no-image"]


# --- names and bits


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        ([f"3.{number}" for number in range(1, 7)], [1, 2, 3, 4, 5, 6]),
        ([f"3.{number}.dcm" for number in range(10, 16)], list(range(10, 16))),
        ([f"{number}.dcm" for number in range(1, 7)], [1, 2, 3, 4, 5, 6]),
        (["1.2", "2.dcm", "3.dcm", "4.dcm", "5.dcm", "6.dcm"], [1, 2, 3, 4, 5, 6]),
        ([f"1.2.840.{number}.7" for number in range(6)], [31, 32, 33, 34, 35, 36]),
        ([f"{number}.3" for number in range(1, 7)], [1, 2, 3, 4, 5, 6]),
    ],
)
def test_of_names_with_two_numbers_the_one_that_differs_is_the_files(tmp_path, names, numbers):
    write_series(tmp_path / "7", VOLUME, GRID, numbers=range(31, 37), names=names)
    study = read(tmp_path)
    assert study.problems == [] and sorted(study.stacks[0].instances) == numbers


@pytest.mark.parametrize("keyword", ["LargestImagePixelValue", "LargestPixelValueInSeries"])
def test_values_above_the_stored_bits_are_kept_where_the_header_means_them(tmp_path, keyword):
    bright = VOLUME * 3
    true = clean(tmp_path, volume=bright).stacks[0]
    for index, image in enumerate(bright):
        tags = place_tags(GRID, index) | {"bits_stored": 12}
        path = write_file(tmp_path / "7" / f"{index + 1}.dcm", image, **tags)
        dataset = pydicom.dcmread(path)
        dataset.add_new(keyword, "US", int(bright.max()))
        dataset.save_as(path)
    study = read(tmp_path)
    assert kinds(study) == ["larger-values"] * 6 and np.array_equal(study.stacks[0].pixels, true.pixels)
    for path in (tmp_path / "7").iterdir():  # with an overlay in the bits above, the header means less
        dataset = pydicom.dcmread(path)
        dataset.add_new(0x60000102, "US", 12)
        dataset.save_as(path)
    assert kinds(read(tmp_path)) == ["stray-bits"] * 6
