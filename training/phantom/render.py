"""Images of a planned series: signal on the measured grid, shading, noise, interpolation, stored values."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from .body import signal_at
from .curve import Floats
from .protocol import SeriesPlan, SlicePlan
from .sizes import Anatomy
from .tissue import sample_signal_table

_MAXIMUM = 4095


def slice_points(plan: SeriesPlan, place: SlicePlan, rows: int, columns: int) -> Floats:
    """Patient mm (rows, columns, 3) of a grid of cells over the field of view of a slice."""
    column = ((np.arange(columns) + 0.5) * plan.columns / columns - 0.5) * plan.spacing_mm
    row = ((np.arange(rows) + 0.5) * plan.rows / rows - 0.5) * plan.spacing_mm
    along_column = (place.position + row[:, None] * place.along_column).astype(np.float32)
    along_row = (column[:, None] * place.along_row).astype(np.float32)
    return along_column[:, None, :] + along_row[None, :, :]


def render_series(
    anatomy: Anatomy, plan: SeriesPlan, rng: np.random.Generator
) -> Iterator[tuple[SlicePlan, NDArray[np.uint16]]]:
    """Each slice with its image (rows, columns) of 12 bits; signals and shading are drawn once a series."""
    table = sample_signal_table(rng, plan.contrast)
    reach_mm, lowest = float(rng.uniform(55.0, 110.0)), float(rng.uniform(0.25, 0.5))
    cell = max(plan.acquired_mm, plan.spacing_mm)
    rows = max(48, round(plan.rows * plan.spacing_mm / cell))
    columns = max(48, round(plan.columns * plan.spacing_mm / cell))
    for place in plan.slices:
        points = slice_points(plan, place, rows, columns)
        shifts = tuple(share * plan.thickness_mm * place.normal for share in (-0.22, 0.22))
        signal = signal_at(points, anatomy, table, max(0.7, cell), shifts)
        signal *= _coil_shading(points, anatomy, reach_mm, lowest)
        yield place, _as_stored(signal, plan, rng)


def _coil_shading(points: Floats, anatomy: Anatomy, reach_mm: float, lowest: float) -> Floats:
    """Sensitivity of the coil in the table: 1 at the back, falling toward the belly and the ends."""
    middle = anatomy.curve.centres.mean(axis=0).tolist()
    depth = np.maximum(middle[1] + 60.0 - points[..., 1], 0.0) / reach_mm
    along = (points[..., 2] - middle[2]) / 260.0
    return np.asarray(lowest + (1.1 - lowest) * np.exp(-0.5 * depth) / (1.0 + along**2), np.float32)


def _as_stored(signal: Floats, plan: SeriesPlan, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Blur, Rician noise, the scanner's interpolation, black margins and the stored scale."""
    signal = np.asarray(cv2.GaussianBlur(signal, (3, 3), 0.5), np.float32)
    noise = rng.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(plan.noise)
    signal = np.hypot(signal + noise[0], noise[1])
    image = cv2.resize(signal, (plan.columns, plan.rows), interpolation=cv2.INTER_CUBIC)
    margin = round(plan.padding * plan.columns)
    if margin:
        image[:, :margin] = 0.0
        image[:, -margin:] = 0.0
    return np.clip(image * plan.white, 0, _MAXIMUM).astype(np.uint16)
