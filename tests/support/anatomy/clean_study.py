"""One small clean study, written in a moment, whose grey values any number of bits from 8 on can hold exactly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.dicom.dicom_factory import DESCRIPTIONS
from tests.support.dicom.dicom_writer import Grid, texture, upright_grid, write_series

T1, T2, AXIAL = "sagittal_t1", "sagittal_t2", "axial_t2"
SERIES = {T1: "11", T2: "12", AXIAL: "13"}
GRIDS = {
    T1: upright_grid("sagittal", (10, 72, 64), (3.0, 2.8), 5.0, (1, -2, 3)),
    T2: upright_grid("sagittal", (9, 64, 70), (3.2, 2.9), 5.2, (-1, 2, 1)),
    AXIAL: upright_grid("axial", (18, 60, 64), (2.5, 2.6), 8.0, (0, 0, -5)),
}
BRIGHTEST = 255


def _volume(kind: str, seed: int) -> np.ndarray:
    """(slice, H, W) uint16 of noise on a ramp, each slice of its own brightness."""
    shape = GRIDS[kind].shape
    brightness = np.random.default_rng(seed).uniform(0.5, 1, shape[0])
    volume = (texture(shape, seed, BRIGHTEST) * brightness[:, None, None]).astype(np.uint16)
    # From end to end, so that scaled values fall on whole steps of 16 bits.
    volume[0, 0, 0], volume[-1, -1, -1] = 0, BRIGHTEST
    return volume


VOLUMES = {kind: _volume(kind, seed) for seed, kind in enumerate(SERIES, 1)}


def write_clean_study(folder: Path) -> None:
    """Write a series of each kind below `folder`."""
    for kind in SERIES:
        rewrite(folder, kind)


def rewrite(folder: Path, kind: str, volume: np.ndarray | None = None, grid: Grid | None = None, **more: Any) -> None:
    """Write a series of the study anew; `more` goes to write_series: syntax, numbers, names and tags."""
    series = folder / SERIES[kind]
    if series.exists():
        shutil.rmtree(series)
    volume = VOLUMES[kind] if volume is None else volume
    write_series(series, volume, GRIDS[kind] if grid is None else grid, **{"bits_stored": 12, **more})


def table_rows(*kinds: str) -> list[tuple[str, str]]:
    """(series id, description) of the study's series, as the series table lists them."""
    return [(SERIES[kind], DESCRIPTIONS[kind]) for kind in kinds or SERIES]
