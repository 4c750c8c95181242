"""Landmarks of made-up spines: upright, curved a little, of several sizes, anywhere in the scanner."""

from __future__ import annotations

import numpy as np

from kernels.lumbar.labels import LEVELS, ROWS, group_of
from kernels.lumbar.manifest import STACK_CENTRES, Shape
from training.data.fit_spine_shape import fit_shape

DEPTH_MM = {"spinal": 0.0, "foraminal": -6.0, "subarticular": 1.0}
ASIDE_MM = {"spinal": 0.0, "foraminal": 17.0, "subarticular": 9.0}


def spine(random: np.random.Generator, left_right_mm: float = 0.0) -> dict[str, np.ndarray]:
    """The 25 landmarks and the middles of the three stacks."""
    place, size, bend = random.normal(0, 60, 3), random.normal(1, 0.08), random.normal(0, 4)
    points = {}
    for row in ROWS:
        level = next(number for number, name in enumerate(LEVELS) if row.endswith(name)) - 2
        group = group_of(row)
        side = 1 if row.startswith("left_") else -1
        x = side * ASIDE_MM[group] * (1 + 0.05 * level) + left_right_mm
        y = DEPTH_MM[group] + bend * level**2 / 2 + 3 * level
        points[row] = place + size * np.array([x, y, -35.0 * level]) + random.normal(0, 0.7, 3)
    for name in STACK_CENTRES:
        points[name] = place + random.normal(0, 8, 3)
    return points


def spines(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [spine(random) for _ in range(count)]


def spine_shape() -> Shape:
    """The shape of sixty of them."""
    shape = fit_shape(spines(60))
    assert shape is not None
    return shape
