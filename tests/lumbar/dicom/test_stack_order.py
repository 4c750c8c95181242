"""From files to stacks: right order, grouping and geometry, or a named assumption."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from kernels.lumbar.dicom.read_study import read_study
from tests.support.dicom.dicom_writer import (
    make_multiframe,
    place_tags,
    texture,
    upright_grid,
    write_file,
    write_series,
)
from tests.support.dicom.one_series import AXIAL, SAGITTAL, expected_pixels, kinds, read


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
