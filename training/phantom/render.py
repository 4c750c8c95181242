"""Images of a planned series: signal on the measured grid, shading, noise, interpolation, stored values."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from .body import signal_at
from .curve import Floats
from .protocol import SeriesPlan, SlicePlan
from .shading import sample_shading
from .sizes import Anatomy
from .tissue import sample_signal_table

_MAXIMUM = 4095
TEXTURE_MM = 0.9


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
    shading = sample_shading(rng, anatomy, plan.description)
    cell = max(plan.acquired_mm, plan.spacing_mm)
    rows = max(48, round(plan.rows * plan.spacing_mm / cell))
    columns = max(48, round(plan.columns * plan.spacing_mm / cell))
    for place in plan.slices:
        points = slice_points(plan, place, rows, columns)
        shifts = tuple(share * plan.thickness_mm * place.normal for share in (-0.22, 0.22))
        signal = signal_at(points, anatomy, table, max(0.7, cell), shifts)
        signal *= shading.at(points)
        yield place, _as_stored(signal, plan, rng)


def _texture(shape: tuple[int, ...], plan: SeriesPlan, rng: np.random.Generator) -> Floats:
    """Factor (rows, columns) of the signal by the structure of tissue, too fine for the anatomy: about 1."""
    grain_px = TEXTURE_MM / max(plan.acquired_mm, plan.spacing_mm)
    grains = cv2.GaussianBlur(rng.standard_normal(shape, dtype=np.float32), (0, 0), grain_px)
    # White noise, averaged over a Gaussian, keeps 1 / (2 × sqrt(pi) × sigma) of its deviation.
    return np.asarray(1.0 + plan.texture * 2.0 * np.sqrt(np.pi) * grain_px * grains, np.float32)


def _as_stored(signal: Floats, plan: SeriesPlan, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Texture, blur, Rician noise, the scanner's interpolation, black margins and the stored scale."""
    signal = np.asarray(cv2.GaussianBlur(signal * _texture(signal.shape, plan, rng), (3, 3), 0.5), np.float32)
    noise = rng.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(plan.noise)
    signal = np.hypot(signal + noise[0], noise[1])
    image = cv2.resize(signal, (plan.columns, plan.rows), interpolation=cv2.INTER_CUBIC)
    margin = round(plan.padding * plan.columns)
    if margin:
        image[:, :margin] = 0.0
        image[:, -margin:] = 0.0
    return np.clip(image * plan.white, 0, _MAXIMUM).astype(np.uint16)
