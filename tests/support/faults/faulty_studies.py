"""Ways to spoil a clean study: its series, their order and geometry, and their pixels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.anatomy.clean_study import AXIAL, BRIGHTEST, GRIDS, SERIES, T1, T2, VOLUMES, rewrite, table_rows
from tests.support.dicom.dicom_writer import (
    Grid,
    make_multiframe,
    place_tags,
    texture,
    upright_grid,
    write_file,
    write_series,
)
from tests.support.faults.faulty_files import clear

Rows = list[tuple[str, str]]
Spoil = Callable[[Path], object]


def anew(kind: str = T1, **more: Any) -> Spoil:
    """Write a series anew with other tags, numbers, names or syntax."""
    return lambda study: rewrite(study, kind, **more)


def one_file(**tags: Any) -> Spoil:
    """Write the fourth file of Sagittal T1 anew."""
    grid, volume = GRIDS[T1], VOLUMES[T1]
    return lambda study: write_file(
        study / SERIES[T1] / "4.dcm", volume[3], bits_stored=12, InstanceNumber=4, **{**place_tags(grid, 3), **tags}
    )


def without(*kinds: str) -> Spoil:
    """Neither folder nor row of some kinds of series."""

    def spoil(study: Path) -> Rows:
        for kind in kinds:
            shutil.rmtree(study / SERIES[kind])
        return table_rows(*(kind for kind in SERIES if kind not in kinds))

    return spoil


def described(description: str, kind: str = T1) -> Spoil:
    """Another description of a series in the table."""
    return lambda _: [(series, description if series == SERIES[kind] else text) for series, text in table_rows()]


# --- series


def empty_all(study: Path) -> None:
    """Folders without files."""
    for series in SERIES.values():
        clear(study / series)


def file_for_folder(study: Path) -> None:
    """A file where the folder of Sagittal T1 was."""
    shutil.rmtree(study / SERIES[T1])
    (study / SERIES[T1]).write_bytes(b"no folder")


def second_t2(study: Path) -> Rows:
    """A shorter one of the same place, later in the table, as a repetition is."""
    shape = (5, *GRIDS[T2].shape[1:])
    write_series(study / "20", texture(shape, 9, BRIGHTEST), GRIDS[T2], bits_stored=12)
    return [*table_rows(), ("20", table_rows(T2)[0][1])]


def axial_in_five(study: Path) -> Rows:
    """One series a level."""
    description = table_rows(AXIAL)[0][1]
    rows = table_rows(T1, T2)
    for number, part in enumerate(np.array_split(np.arange(len(VOLUMES[AXIAL])), 5)):
        series = str(30 + number)
        write_series(study / series, VOLUMES[AXIAL][part], part_of(GRIDS[AXIAL], int(part[0])), bits_stored=12)
        rows.append((series, description))
    shutil.rmtree(study / SERIES[AXIAL])
    return rows


def part_of(grid: Grid, first: int) -> Grid:
    """The grid from one of its slices on."""
    return Grid(grid.origin + first * grid.step, grid.column, grid.row, grid.step, grid.spacing, grid.shape)


def two_levels(study: Path) -> None:
    """An axial series of 40 mm."""
    rewrite(study, AXIAL, VOLUMES[AXIAL][5:10], part_of(GRIDS[AXIAL], 5))


# --- order and geometry


def stored_otherwise(study: Path) -> None:
    """Rows reversed and rows and columns exchanged: the same image by its geometry."""
    grid, volume = GRIDS[T2], VOLUMES[T2]
    far = grid.origin + grid.row * grid.spacing[0] * (grid.shape[1] - 1)
    turned = Grid(far, -grid.row, grid.column, grid.step, grid.spacing[::-1], grid.shape)
    rewrite(study, T2, volume[:, ::-1].transpose(0, 2, 1), turned)


def duplicated_slices(study: Path) -> None:
    """More files at places that are taken, with darker pixels."""
    for number, index in ((51, 2), (52, 7)):
        path = study / SERIES[T1] / f"{number}.dcm"
        write_file(path, VOLUMES[T1][index] // 2, InstanceNumber=number, **place_tags(GRIDS[T1], index))


def localiser_among_slices(study: Path) -> None:
    """An axial image in a sagittal series."""
    across = upright_grid("axial", (1, 72, 64), (3, 3))
    write_file(study / SERIES[T1] / "0.dcm", VOLUMES[T1][0], InstanceNumber=0, **place_tags(across, 0))


def mixed_orientations(study: Path) -> None:
    """The last four slices of Sagittal T1 are turned."""
    grid = upright_grid("sagittal", GRIDS[T1].shape, GRIDS[T1].spacing, 5.0, (1, -2, 3), (0, 0, 25))
    for index in range(6, 10):
        path = study / SERIES[T1] / f"{index + 1}.dcm"
        write_file(path, VOLUMES[T1][index], bits_stored=12, InstanceNumber=index + 1, **place_tags(grid, index))


def mixed_shapes(study: Path) -> None:
    """The last four slices of Sagittal T1 are shorter."""
    for index in range(6, 10):
        path = study / SERIES[T1] / f"{index + 1}.dcm"
        pixels = VOLUMES[T1][index, :60]
        write_file(path, pixels, bits_stored=12, InstanceNumber=index + 1, **place_tags(GRIDS[T1], index))


def single_slice(study: Path) -> None:
    """All that there is of Sagittal T1."""
    rewrite(study, T1, VOLUMES[T1][5:6], part_of(GRIDS[T1], 5))


# --- pixels


def resized(side_px: int, count: int) -> Spoil:
    """Sagittal T1 of another size, of the same field."""
    grid = upright_grid("sagittal", (count, side_px, side_px), (200 / side_px, 200 / side_px), 5.0, (1, -2, 3))
    return lambda study: rewrite(study, T1, texture(grid.shape, 7, BRIGHTEST), grid)


def pixels(change: Callable[[np.ndarray], np.ndarray], kind: str = T1, **more: Any) -> Spoil:
    """Other stored values."""
    return lambda study: rewrite(study, kind, change(VOLUMES[kind].astype(np.int64)), **more)


def slopes_by_file(study: Path) -> None:
    """Every file stores the same values in its own way."""
    for index, image in enumerate(VOLUMES[T1].astype(np.int64)):
        factor, offset = index % 3 + 1, 10 * index
        tags = {"RescaleSlope": f"{1 / factor:.12g}", "RescaleIntercept": f"{-offset / factor:.10g}"}
        stored = (factor * image + offset).astype(np.uint16)
        path = study / SERIES[T1] / f"{index + 1}.dcm"
        write_file(path, stored, InstanceNumber=index + 1, **{**place_tags(GRIDS[T1], index), **tags})


def multiframe(has_places: bool) -> Spoil:
    """Sagittal T1 in one file."""

    def spoil(study: Path) -> None:
        dataset = make_multiframe(VOLUMES[T1], GRIDS[T1], bits_stored=12)
        if not has_places:
            del dataset.PerFrameFunctionalGroupsSequence
        clear(study / SERIES[T1])
        dataset.save_as(study / SERIES[T1] / "1.dcm", enforce_file_format=True)

    return spoil
