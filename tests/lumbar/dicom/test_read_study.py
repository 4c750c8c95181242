"""From files to stacks: right pixels from every transfer syntax, right order and grouping, and named Problems."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.lumbar.dicom import pixels
from kernels.lumbar.dicom import read_study as reader
from kernels.lumbar.dicom.fast_path_check import agrees
from kernels.lumbar.dicom.grey_window import grey_window, to_uint8
from kernels.lumbar.dicom.header import scan
from kernels.lumbar.dicom.read_study import read_study
from tests.support.dicom.dicom_writer import (
    SYNTAXES,
    make_dataset,
    make_multiframe,
    place_tags,
    texture,
    upright_grid,
    write_file,
    write_series,
)

SAGITTAL = upright_grid("sagittal", (6, 30, 24), (0.8, 0.7), 4.0, (3, -2, 5))
AXIAL = upright_grid("axial", (6, 30, 24), (0.8, 0.7), 4.0, (3, -2, 5))


def read(folder, kind="sagittal_t1", series="7"):
    """The study of one series that was written to folder/7."""
    return read_study(folder, "1", [(series, kind)])


def kinds(study):
    return [problem.kind for problem in study.problems]


def expected_pixels(volume):
    return to_uint8(volume, grey_window(volume))


# --- pixels


def words_of(path, fast=True):
    """The stored words of a file, as the fast path or as pydicom reads them; None where the fast path declines."""
    buffer, size = pixels.read_file(path)
    found = scan(buffer.data[:size])
    if not fast:
        return pixels.decode_by_pydicom(pixels.read_dataset(buffer, size))
    header = reader.parse(found.values) if found else None
    return None if header is None else pixels.decode_fast(buffer, size, found, header)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("dtype", "stored"), [("u2", 12), ("u2", 16), ("i2", 16), ("i2", 12), ("u1", 8)])
@pytest.mark.parametrize("shape", [(30, 24), (23, 24), (30, 23), (23, 25)])
def test_every_syntax_gives_the_bits_that_were_written(tmp_path, syntax, dtype, stored, shape):
    image = texture(shape, top=200 if dtype == "u1" else 4000, dtype=dtype)
    if dtype == "i2":
        image -= 2000
    path = write_file(tmp_path / "7" / "1.dcm", image, syntax, bits_stored=stored)
    assert np.array_equal(pydicom.dcmread(path).pixel_array, image)
    fast = words_of(path)
    odd = shape[0] * shape[1] % 2
    assert (fast is not None) == (
        syntax in ("explicit", "implicit", "rle") and dtype != "u1" and not (odd and syntax == "rle")
    )
    if fast is not None:
        assert np.array_equal(fast.view(dtype), image)
        assert np.array_equal(fast, words_of(path, fast=False))
    study = read(tmp_path)
    assert study.problems == []
    assert np.array_equal(study.stacks[0].pixels[0], expected_pixels((image.astype(int) + 2000).astype("u2")[None])[0])


@pytest.mark.parametrize("syntax", ["explicit", "rle"])
@given(data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_fast_path_agrees_with_pydicom_on_any_content(tmp_path, syntax, data):
    """Runs, noise and both mixed: what PackBits treats differently."""
    rows, columns = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    values = data.draw(st.lists(st.sampled_from([0, 1, 255, 256, 4095, 65535]), min_size=1, max_size=12))
    repeats = data.draw(st.lists(st.integers(1, 140), min_size=len(values), max_size=len(values)))
    image = np.resize(np.repeat(np.array(values, "u2"), repeats), (rows, columns))
    path = write_file(tmp_path / "1.dcm", image, syntax)
    fast = words_of(path)
    assert fast is None or np.array_equal(fast, image)
    assert (fast is None) == (syntax == "rle" and rows * columns % 2 == 1)


def test_the_fast_path_is_taken_once_it_is_confirmed_on_a_file_of_the_series(tmp_path, monkeypatch):
    volume = texture((6, 30, 24))
    write_series(tmp_path / "7", volume, SAGITTAL, syntax="rle")
    calls = []
    monkeypatch.setattr(reader, "agrees", lambda *given: calls.append(1) or agrees(*given))
    monkeypatch.setattr(reader, "decode_by_pydicom", lambda _: pytest.fail("decoded twice"))
    first, second = read(tmp_path), read(tmp_path)
    assert len(calls) == 2  # of twelve files
    assert np.array_equal(first.stacks[0].pixels, second.stacks[0].pixels)
    assert np.array_equal(first.stacks[0].pixels, expected_pixels(volume))


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "rle"])
@pytest.mark.parametrize("shape", [(2, 3), (30, 24), (80, 90)])
def test_a_fast_reading_is_confirmed_as_it_is_and_in_no_other_way(tmp_path, syntax, shape):
    path = write_file(tmp_path / "1.dcm", texture(shape), syntax)
    buffer, size = pixels.read_file(path)
    found = scan(buffer.data[:size])
    header = reader.parse(found.values)
    words = pixels.decode_fast(buffer, size, found, header).copy()
    assert agrees(buffer, size, found, header, words)
    swapped, shifted, tops = words.byteswap(), np.roll(words, 1), words ^ 0x100
    assert not any(agrees(buffer, size, found, header, other) for other in (swapped, shifted, tops, words + 1))
    assert not agrees(buffer, size, replace(found, pixel_offset=found.pixel_offset + 2), header, words)
    assert not agrees(buffer, size, found, replace(header, bits_stored=header.bits_stored - 1), words)
    assert not agrees(buffer, size, replace(found, pixel_length=2 * words.nbytes), header, words) or syntax == "rle"


@pytest.mark.parametrize(("shape", "claimed"), [((30, 24), (20, 24)), ((30, 24), (28, 24)), ((30, 23), (28, 23))])
def test_a_series_that_holds_more_pixels_than_it_claims_is_not_confirmed(tmp_path, shape, claimed):
    path = write_file(tmp_path / "1.dcm", texture(shape), "rle")
    buffer, size = pixels.read_file(path)
    found = scan(buffer.data[:size])
    header = replace(reader.parse(found.values), rows=claimed[0], columns=claimed[1])
    words = pixels.decode_fast(buffer, size, found, header)
    segments = pixels.rle_segments(buffer.data[:size], found)
    assert words is not None and pixels.unpack_planes(buffer, size, segments, shape[0] + 2, shape[1]) is None
    assert not agrees(buffer, size, found, header, words)


def test_where_the_fast_path_differs_pydicom_reads_the_series(tmp_path, monkeypatch):
    volume = texture((6, 30, 24))
    write_series(tmp_path / "7", volume, SAGITTAL)
    monkeypatch.setattr(reader, "decode_fast", lambda *_: np.zeros((30, 24), np.uint16))
    study = read(tmp_path)
    assert kinds(study) == ["fast-path-differs"]
    assert np.array_equal(study.stacks[0].pixels, expected_pixels(volume))


def test_studies_do_not_share_memory(tmp_path):
    for study, seed in (("a", 1), ("b", 2)):
        write_series(tmp_path / study / "7", texture((6, 30, 24), seed), SAGITTAL)
    first = read(tmp_path / "a").stacks[0].pixels
    kept = first.copy()
    second = read(tmp_path / "b").stacks[0].pixels
    assert np.array_equal(first, kept) and not np.array_equal(first, second)


def test_stray_bits_above_the_stored_ones_are_dropped_and_named(tmp_path):
    image = texture((30, 24))
    write_file(tmp_path / "7" / "1.dcm", image | 0xA000, bits_stored=12)
    study = read(tmp_path)
    assert kinds(study) == ["stray-bits"]
    assert np.array_equal(study.stacks[0].pixels[0], expected_pixels(image[None])[0])


def test_signed_values_keep_their_order(tmp_path):
    image = (texture((30, 24)) - np.uint16(2000)).view("i2")
    unextended = (image & 0x0FFF).astype("u2")  # 12 bits, the sign bit at 11 and nothing above it
    write_file(tmp_path / "7" / "1.dcm", unextended.view("i2"), bits_stored=12)
    assert np.array_equal(read(tmp_path).stacks[0].pixels[0], expected_pixels((image + 2000).astype("u2")[None])[0])


def test_values_stored_high_in_the_word_are_shifted(tmp_path):
    image = texture((30, 24))
    write_file(tmp_path / "7" / "1.dcm", image << 4, bits_stored=12, HighBit=15)
    assert np.array_equal(read(tmp_path).stacks[0].pixels[0], expected_pixels(image[None])[0])


def test_monochrome1_is_inverted(tmp_path):
    volume = texture((6, 30, 24))
    write_series(tmp_path / "7", volume, SAGITTAL, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read(tmp_path).stacks[0].pixels, expected_pixels(65535 - volume))


def test_one_slope_for_all_changes_nothing_and_a_negative_one_inverts(tmp_path):
    volume = texture((6, 30, 24))
    write_series(tmp_path / "a" / "7", volume, SAGITTAL, RescaleSlope="2.5", RescaleIntercept="-100")
    write_series(tmp_path / "b" / "7", volume, SAGITTAL, RescaleSlope="-1", RescaleIntercept="0")
    assert np.array_equal(read(tmp_path / "a").stacks[0].pixels, expected_pixels(volume))
    assert np.array_equal(read(tmp_path / "b").stacks[0].pixels, expected_pixels(65535 - volume))


def test_slopes_that_differ_are_applied_before_the_window(tmp_path):
    volume = texture((6, 30, 24))
    for index, slope in enumerate((1.0, 2.0, 0.5, 1.0, 4.0, 1.0)):
        stored = (volume[index] / slope).astype("u2")
        tags = {"RescaleSlope": str(slope), "RescaleIntercept": "0"}
        write_file(tmp_path / "7" / f"{index}.dcm", stored, **place_tags(SAGITTAL, index), **tags)
    difference = read(tmp_path).stacks[0].pixels.astype(int) - expected_pixels(volume)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("tags", [{"RescaleSlope": "0"}, {"RescaleSlope": "1e300"}, {"RescaleIntercept": "NaN"}])
def test_a_rescale_that_no_scanner_means_is_named_and_ignored(tmp_path, tags):
    volume = texture((6, 30, 24))
    with warnings.catch_warnings(action="ignore"):
        write_series(tmp_path / "7", volume, SAGITTAL, **tags)
    study = read(tmp_path)
    assert set(kinds(study)) == {"bad-rescale"}
    assert np.array_equal(study.stacks[0].pixels, expected_pixels(volume))


def test_wide_and_floating_values_keep_their_order(tmp_path):
    """32-bit integers, and floating values of which some are not finite: what a map or a report may hold."""
    image = texture((30, 24))
    write_file(tmp_path / "a" / "7" / "1.dcm", image.astype("u4") * 70000)
    floating = make_dataset(image.astype("u4"), PixelRepresentation=None)
    floating.FloatPixelData = np.where(image == image.min(), np.nan, image * 1e-3).astype("<f4").tobytes()
    del floating.PixelData, floating.BitsStored, floating.HighBit
    (tmp_path / "b" / "7").mkdir(parents=True)
    floating.save_as(tmp_path / "b" / "7" / "1.dcm", enforce_file_format=True)
    for folder in ("a", "b"):
        study = read(tmp_path / folder)
        assert study.problems == []
        difference = study.stacks[0].pixels[0].astype(int) - expected_pixels(image[None])[0]
        assert np.abs(difference).max() <= 2


def test_a_constant_stack_is_black_and_named(tmp_path):
    write_series(tmp_path / "7", np.full((6, 30, 24), 9, "u2"), SAGITTAL)
    study = read(tmp_path)
    assert kinds(study) == ["constant-pixels"] and not study.stacks[0].pixels.any()


# --- order and grouping


@pytest.mark.parametrize(("kind", "grid"), [("sagittal_t2", SAGITTAL), ("axial_t2", AXIAL)])
@pytest.mark.parametrize("seed", range(4))
def test_neither_order_nor_names_nor_storage_of_files_matter(tmp_path, kind, grid, seed):
    """The same slices under other numbers, in other order, transposed or flipped in storage: the same stack."""
    random = np.random.default_rng(seed)
    volume = texture((6, 30, 24))
    numbers = random.choice(5000, 6, replace=False) + 1
    flip_row, flip_column, transpose = random.random(3) < 0.5
    for index, number in enumerate(numbers):
        image, origin, column, row = volume[index], grid.origin + index * grid.step, grid.column, grid.row
        spacing = grid.spacing
        if flip_row:
            image, origin, row = image[::-1], origin + row * spacing[0] * 29, -row
        if flip_column:
            image, origin, column = image[:, ::-1], origin + column * spacing[1] * 23, -column
        if transpose:
            image, column, row, spacing = image.T, row, column, spacing[::-1]
        tags = {"ImagePositionPatient": list(origin), "ImageOrientationPatient": [*column, *row]}
        write_file(tmp_path / "7" / f"{number}.dcm", image, "rle", PixelSpacing=list(spacing), **tags)
    study = read(tmp_path, kind)
    (stack,) = study.stacks
    assert study.problems == [] and not stack.assumed
    assert stack.instances == tuple(numbers)
    assert np.array_equal(stack.pixels, expected_pixels(volume))
    for index, plane in enumerate(stack.planes):
        assert plane.to_patient(4, 5) == pytest.approx(grid.points()[index, 4, 5], abs=1e-6)
    at = (5, 4) if transpose else (4, 5)
    stored = [29 - at[0] if flip_row else at[0], 23 - at[1] if flip_column else at[1]]
    if transpose:
        stored = [at[0] if not flip_column else 23 - at[0], at[1] if not flip_row else 29 - at[1]]
    assert study.lift("7", int(numbers[2]), *stored) == pytest.approx(grid.points()[2, 4, 5], abs=1e-6)


def test_sagittal_runs_to_patient_left_and_axial_to_the_feet(tmp_path):
    write_series(tmp_path / "7", texture((6, 30, 24)), SAGITTAL)
    write_series(tmp_path / "8", texture((6, 30, 24)), AXIAL, numbers=range(6, 0, -1))
    study = read_study(tmp_path, "1", [("7", "sagittal_t2"), ("8", "axial_t2")])
    sagittal, axial = study.of_kind("sagittal_t2")[0], study.of_kind("axial_t2")[0]
    assert np.all(np.diff([plane.origin_mm[0] for plane in sagittal.planes]) > 0)
    assert np.all(np.diff([plane.origin_mm[2] for plane in axial.planes]) < 0)
    assert np.all(np.diff(sagittal.positions_mm) > 0) and np.all(np.diff(axial.positions_mm) > 0)


@pytest.mark.parametrize("jitter", [0, 2e-4])
def test_disc_blocks_a_localiser_and_other_shapes_are_taken_apart(tmp_path, jitter):
    random = np.random.default_rng(0)
    number = 0
    for disc, tilt in enumerate((10, 6, -1, -11, -30)):
        block = upright_grid("axial", (4, 30, 24), (0.8, 0.8), 4.0, (0, 0, 60 - 30 * disc), (tilt, 0, 0))
        for index in range(4):
            number += 1
            tags = place_tags(block, index)
            wobble = np.array(tags["ImageOrientationPatient"], float) + random.uniform(-jitter, jitter, 6)
            tags["ImageOrientationPatient"] = [f"{value:.9f}" for value in wobble]
            write_file(tmp_path / "7" / f"{number}.dcm", texture((30, 24), number), "rle", **tags)
    write_file(tmp_path / "7" / "98.dcm", texture((30, 24), 98), **place_tags(SAGITTAL, 2))
    other = upright_grid("axial", (1, 30, 28), (0.8, 0.8), 4.0, (0, 0, 80), (10, 0, 0))
    write_file(tmp_path / "7" / "99.dcm", texture((30, 28), 99), **place_tags(other, 0))
    study = read(tmp_path, "axial_t2")
    assert kinds(study) == ["off-orientation"] and study.problems[0].where == "7/98.dcm"
    by_height = [(99,), *(tuple(range(4 * disc + 1, 4 * disc + 5)) for disc in range(5))]
    assert sorted(stack.instances for stack in study.stacks) == sorted(by_height)
    blocks = [stack for stack in study.stacks if len(stack.instances) == 4]
    heights = [stack.centres_mm[:, 2].mean() for stack in blocks]
    assert heights == sorted(heights, reverse=True)
    assert study.lift("7", 98, 0, 0) is not None  # left out of the stacks, yet a label may lie on it


def test_discs_of_one_orientation_make_one_stack_with_gaps(tmp_path):
    for disc in range(3):
        grid = upright_grid("axial", (3, 30, 24), centre=(0, 0, -40 * disc))
        write_series(tmp_path / "7", texture((3, 30, 24), disc), grid, numbers=range(3 * disc + 1, 3 * disc + 4))
    (stack,) = read(tmp_path, "axial_t2").stacks
    assert stack.instances == tuple(range(1, 10))
    assert np.diff(stack.positions_mm).max() > 30


def test_a_series_that_is_wholly_of_another_plane_is_kept_and_named(tmp_path):
    write_series(tmp_path / "7", texture((6, 30, 24)), upright_grid("axial", (6, 30, 24)))
    study = read(tmp_path, "sagittal_t1")
    assert kinds(study) == ["unexpected-orientation"] and len(study.stacks[0].planes) == 6


def test_the_second_slice_at_a_place_is_left_out(tmp_path):
    volume = texture((6, 30, 24))
    write_series(tmp_path / "7", volume, SAGITTAL)
    write_file(tmp_path / "7" / "20.dcm", volume[0] // 2, **place_tags(SAGITTAL, 3))
    study = read(tmp_path)
    assert kinds(study) == ["duplicate-slice"] and study.problems[0].where == "7/20.dcm"
    assert np.array_equal(study.stacks[0].pixels, expected_pixels(volume))


def test_the_file_name_is_the_number_that_labels_use_else_the_header_is(tmp_path):
    volume = texture((2, 30, 24))
    write_series(tmp_path / "7", volume, SAGITTAL, numbers=[30, 31], names=["0012.dcm", "IM31"])
    study = read(tmp_path)
    assert sorted(study.stacks[0].instances) == [12, 31]
    assert study.lift("7", 12, 0, 0) == pytest.approx(SAGITTAL.origin, abs=1e-6)
    assert study.lift("7", 30, 0, 0) is None and study.lift("8", 12, 0, 0) is None


def test_two_files_of_one_number_are_named(tmp_path):
    write_series(tmp_path / "7", texture((2, 30, 24)), SAGITTAL, names=["5.dcm", "05.dcm"])
    study = read(tmp_path)
    assert kinds(study) == ["duplicate-number"] and study.stacks[0].instances == (5, 5)


def test_a_single_slice_is_a_stack(tmp_path):
    write_file(tmp_path / "7" / "1.dcm", texture((30, 24)), **place_tags(SAGITTAL, 0))
    (stack,) = read(tmp_path).stacks
    assert stack.pixels.shape == (1, 30, 24) and stack.positions_mm.shape == (1,)


# --- missing geometry


def test_a_series_without_geometry_gets_a_standard_one_by_instance_number(tmp_path):
    volume = texture((4, 30, 24))
    none = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
    for index, (number, name) in enumerate(((2, "b"), (1, "c"), (4, "a"), (3, "d"))):
        write_file(tmp_path / "7" / name, volume[index], InstanceNumber=number, **none)
    study = read(tmp_path, "axial_t2")
    (stack,) = study.stacks
    assert kinds(study) == ["assumed-geometry", "assumed-spacing"] and stack.assumed
    assert stack.instances == (1, 2, 3, 4)
    assert stack.planes[0].spacing_mm == (0.6, 0.6)
    assert np.diff(stack.positions_mm) == pytest.approx([4.5] * 3)
    assert stack.centres_mm.mean(axis=0) == pytest.approx([0, 0, 0], abs=1e-9)
    assert np.array_equal(stack.pixels, expected_pixels(volume[[1, 0, 3, 2]]))


def test_only_the_spacing_is_assumed_where_only_it_is_missing(tmp_path):
    for index in range(3):
        tags = place_tags(SAGITTAL, index) | {"PixelSpacing": None}
        write_file(tmp_path / "7" / f"{3 - index}.dcm", texture((30, 24), index), **tags)
    study = read(tmp_path)
    (stack,) = study.stacks
    assert kinds(study) == ["assumed-spacing"] and stack.assumed and stack.instances == (3, 2, 1)
    assert stack.planes[0].spacing_mm == pytest.approx((0.6, 0.6))


BROKEN_GEOMETRY = [
    {"ImagePositionPatient": None},
    {"ImageOrientationPatient": None},
    {"PixelSpacing": None},
    {"PixelSpacing": ["0", "0"]},
    {"PixelSpacing": ["NaN", "NaN"]},
    {"PixelSpacing": ["1e6", "1e6"]},
    {"ImagePositionPatient": ["NaN", "0", "0"]},
    {"ImagePositionPatient": ["1e12", "0", "0"]},
    {"ImageOrientationPatient": ["0"] * 6},
    {"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]},
]


@pytest.mark.parametrize("broken", BROKEN_GEOMETRY, ids=str)
@pytest.mark.parametrize("whole_series", [False, True])
def test_a_file_with_a_broken_geometry_is_left_out_and_a_whole_series_is_assumed(tmp_path, broken, whole_series):
    with warnings.catch_warnings(action="ignore"):
        for index in range(4):
            tags = place_tags(SAGITTAL, index) | (broken if index == 1 or whole_series else {})
            write_file(tmp_path / "7" / f"{index}.dcm", texture((30, 24), index), **tags)
    study = read(tmp_path)
    (stack,) = study.stacks
    assert all(np.isfinite(plane.origin_mm).all() for plane in stack.planes)
    if whole_series:
        assert len(stack.planes) == 4 and stack.assumed
        assert set(kinds(study)) <= {"assumed-geometry", "assumed-spacing"} and study.problems
    else:
        assert stack.instances == (0, 2, 3) and not stack.assumed
        assert [(p.kind, p.where) for p in study.problems] == [("no-geometry", "7/1.dcm")]


# --- multi-frame


@pytest.mark.parametrize("frames", [1, 6])
def test_frames_with_a_geometry_each_are_slices(tmp_path, frames):
    volume = texture((frames, 30, 24))
    (tmp_path / "7").mkdir()
    make_multiframe(volume, SAGITTAL).save_as(tmp_path / "7" / "1.dcm", enforce_file_format=True)
    study = read(tmp_path)
    (stack,) = study.stacks
    assert study.problems == [] and stack.instances == tuple(range(1, frames + 1))
    assert np.array_equal(stack.pixels, expected_pixels(volume))
    assert stack.planes[-1].origin_mm == pytest.approx(SAGITTAL.points()[frames - 1, 0, 0], abs=1e-6)


def test_frames_without_a_geometry_each_are_named(tmp_path):
    dataset = make_multiframe(texture((6, 30, 24)), SAGITTAL)
    del dataset.PerFrameFunctionalGroupsSequence
    (tmp_path / "7").mkdir()
    dataset.save_as(tmp_path / "7" / "1.dcm", enforce_file_format=True)
    assert kinds(read(tmp_path)) == ["multi-frame"]


# --- files that are no good


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
