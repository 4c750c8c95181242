"""Several contrasts in one series: a stack is of one, and what is left out has a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.dicom.study import Study
from tests.support.dicom.dicom_writer import (
    make_multiframe,
    place_tags,
    texture,
    upright_grid,
    write_file,
    write_series,
)
from tests.support.dicom.one_series import kinds

GRID = upright_grid("sagittal", (8, 30, 24), (0.8, 0.7), 4.0)
FIRST, SECOND = texture((8, 30, 24)), 4000 - texture((8, 30, 24), 1)


def read(folder: Path, kind: str = "sagittal_t2") -> Study:
    return read_study(folder, "1", [("7", kind)])


def write_both(folder: Path, first: dict, second: dict, shift_mm: float = 0.0, shuffled: bool = False) -> None:
    """Two scans of the same places; numbers 1 to 8 and 9 to 16 unless tags say otherwise."""
    names = np.random.default_rng(4).permutation(16)
    for scan, (volume, tags) in enumerate(((FIRST, first), (SECOND, second))):
        for index in range(8):
            place = place_tags(GRID, index)
            x, *others = place["ImagePositionPatient"]
            place["ImagePositionPatient"] = [f"{float(x) + scan * shift_mm:.6f}", *others]
            number = 8 * scan + index + 1
            name = f"MR.{names[number - 1]:02}.x" if shuffled else f"{number}.dcm"
            given = {key: value(index) if callable(value) else value for key, value in tags.items()}
            write_file(folder / "7" / name, volume[index], **{"InstanceNumber": number, **place, **given})


@pytest.mark.parametrize("shift_mm", [0.0, 0.02, 0.3, 0.8])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"EchoTime": "100"}, {"EchoTime": "30"}),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}),
        ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
        ({}, {}),
        ({"InstanceNumber": lambda index: 2 * index + 1}, {"InstanceNumber": lambda index: 2 * index + 2}),
    ],
    ids=["echo", "type", "acquisition", "runs", "interleaved numbers"],
)
def test_a_stack_is_of_one_scan_and_the_other_is_named(tmp_path, first, second, shift_mm, shuffled):
    write_both(tmp_path, first, second, shift_mm, shuffled)
    study = read(tmp_path)
    (stack,) = study.stacks
    alone = tmp_path / "alone"
    write_series(alone / "7", FIRST, GRID)
    assert kinds(study) == ["other-contrast"]
    assert np.array_equal(stack.pixels, read(alone).stacks[0].pixels)


def test_of_two_echoes_the_kind_takes_the_one_that_suits_it(tmp_path):
    write_both(tmp_path, {"EchoTime": "12"}, {"EchoTime": "96"})
    assert read(tmp_path, "sagittal_t1").stacks[0].instances == tuple(range(1, 9))
    assert read(tmp_path, "sagittal_t2").stacks[0].instances == tuple(range(9, 17))
    assert "8 slices of numbers 9 to 16 (echo time 96 ms)" in read(tmp_path, "sagittal_t1").problems[0].detail


def test_a_few_slices_of_a_better_echo_do_not_win(tmp_path):
    write_series(tmp_path / "7", FIRST, GRID, EchoTime="80")
    for index in (2, 3):
        write_file(tmp_path / "7" / f"{index + 20}.dcm", SECOND[index], EchoTime="120", **place_tags(GRID, index))
    study = read(tmp_path)
    assert [stack.instances for stack in study.stacks] == [tuple(range(1, 9))]
    assert kinds(study) == ["other-contrast"]


def test_echoes_that_differ_by_rounding_and_acquisitions_side_by_side_are_one_stack(tmp_path):
    for index in range(8):
        tags = {"EchoTime": f"{101 + index / 4}", "AcquisitionNumber": index % 2 + 1, "InstanceNumber": index + 1}
        write_file(tmp_path / "7" / f"{index + 1}.dcm", FIRST[index], **place_tags(GRID, index), **tags)
    study = read(tmp_path)
    assert study.problems == [] and study.stacks[0].instances == tuple(range(1, 9))


def test_blocks_of_two_echoes_at_other_places_are_two_stacks(tmp_path):
    write_series(tmp_path / "7", FIRST[:4], GRID, EchoTime="80")
    for index in range(4, 8):
        write_file(tmp_path / "7" / f"{index + 1}.dcm", FIRST[index], EchoTime="110", **place_tags(GRID, index))
    study = read(tmp_path)
    assert study.problems == []
    assert [stack.instances for stack in study.stacks] == [(1, 2, 3, 4), (5, 6, 7, 8)]


def test_steps_far_below_the_usual_one_are_named_where_nothing_tells_the_slices_apart(tmp_path):
    write_series(tmp_path / "7", FIRST, GRID)
    near = {**place_tags(GRID, 3), "InstanceNumber": 9}
    near["ImagePositionPatient"] = [
        f"{float(near['ImagePositionPatient'][0]) + 0.1:.6f}",
        *near["ImagePositionPatient"][1:],
    ]
    write_file(tmp_path / "7" / "9.dcm", SECOND[3], **near)
    study = read(tmp_path)
    assert kinds(study) == ["crowded-slices"] and len(study.stacks[0].planes) == 9
    assert "1 steps of at most 0.1 mm, where 4 mm are usual" in study.problems[0].detail


def test_thin_slices_are_not_crowded(tmp_path):
    write_series(tmp_path / "7", FIRST, upright_grid("sagittal", (8, 30, 24), step_mm=0.35))
    assert read(tmp_path).problems == []


def test_copies_of_files_are_duplicates(tmp_path):
    write_series(tmp_path / "7", FIRST, GRID)
    for index in range(8):
        write_file(
            tmp_path / "7" / f"{index + 21}.dcm", FIRST[index], InstanceNumber=index + 1, **place_tags(GRID, index)
        )
    study = read(tmp_path)
    assert kinds(study) == ["duplicate-slice"] * 8 and study.stacks[0].instances == tuple(range(1, 9))


def test_two_stations_at_the_same_places_across_are_not_two_contrasts(tmp_path):
    write_series(tmp_path / "7", FIRST, GRID)
    lower = upright_grid("sagittal", (8, 30, 24), (0.8, 0.7), 4.0, (0, 0, -200))
    write_series(tmp_path / "7", SECOND, lower, numbers=range(9, 17))
    study = read(tmp_path)
    assert study.problems == [] and len(study.stacks[0].planes) == 16


def test_echoes_of_the_frames_of_one_file_are_told_apart(tmp_path):
    dataset = make_multiframe(np.concatenate([FIRST, SECOND]), GRID)
    groups = dataset.PerFrameFunctionalGroupsSequence
    for index, group in enumerate(groups):
        group.PlanePositionSequence = groups[index % 8].PlanePositionSequence
        echo = type(dataset)()
        echo.EffectiveEchoTime = 100.0 if index < 8 else 30.0
        group.MREchoSequence = [echo]
    (tmp_path / "7").mkdir()
    dataset.save_as(tmp_path / "7" / "1.dcm", enforce_file_format=True)
    study = read(tmp_path)
    assert study.stacks[0].instances == tuple(range(1, 9)) and kinds(study) == ["other-contrast"]
