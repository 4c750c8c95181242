"""Fits the landmark shape model of kernels/lumbar/answers/spine_shape.py to annotated studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kernels.lumbar.dicom.geometry import MINUS_X
from kernels.lumbar.labels import ROWS, mirrored
from kernels.lumbar.manifest import SHAPE_POINTS, UNKNOWN_MM, Shape

MODES = 12
ROUNDS = 8
# Of the rows that occur in any study, a study has at least this share, and so many.
LEAST_SHARE, LEAST_KNOWN = 0.4, 3
LEAST_STUDIES = 3
# Lower limit of the residual: few studies underestimate it.
LEAST_REST_MM = 1.0
DIGITS = 2


def fit_shape(points: Sequence[Mapping[str, np.ndarray]], modes: int = MODES) -> Shape | None:
    """The shape of studies, each a mapping of SHAPE_POINTS to (3,) patient mm; None with too few usable ones.

    Every study is used with its mirror image, so that the shape is symmetric.  Studies are aligned by translation on
    their known points; unknown points are imputed by the model, in a few rounds (expectation maximisation).  A landmark
    that occurs in no study has the deviation UNKNOWN_MM, so that nothing is imputed from it or for it.
    """
    points = [*points, *(_mirrored(one) for one in points)]
    known = np.array([[name in one for name in SHAPE_POINTS] for one in points]).reshape(-1, len(SHAPE_POINTS))
    values = np.array([[one.get(name, np.zeros(3)) for name in SHAPE_POINTS] for one in points]).reshape(
        -1, len(SHAPE_POINTS), 3
    )
    rows = known[:, : len(ROWS)]
    usable = rows.sum(1) >= max(LEAST_KNOWN, LEAST_SHARE * rows.any(0).sum())
    known, values = known[usable], values[usable]
    if len(values) < 2 * LEAST_STUDIES:
        return None
    mean = _first_mean(values, known)
    filled = values.copy()
    for _ in range(ROUNDS):
        shift = ((values - mean) * known[..., None]).sum(1) / known.sum(1)[:, None]
        centred = np.where(known[..., None], values - shift[:, None], mean)
        flat = (centred - mean).reshape(len(centred), -1)
        left, spread, right = np.linalg.svd(flat, full_matrices=False)
        count = min(modes, len(spread), max(1, len(flat) // 4))
        smooth = (left[:, :count] * spread[:count]) @ right[:count]
        filled = np.where(known[..., None], centred, mean + smooth.reshape(centred.shape))
        mean = filled.mean(0)
    flat = (filled - mean).reshape(len(filled), -1)
    _, spread, right = np.linalg.svd(flat, full_matrices=False)
    main = right[:count] * (spread[:count] / np.sqrt(len(flat)))[:, None]
    rest = np.sqrt(np.maximum((flat**2).mean(0) - (main**2).sum(0), 0))
    unknown = np.repeat(~known.any(0), 3)
    return Shape(
        mean_mm=_rounded(mean),
        modes_mm=tuple(_rounded(mode) for mode in main),
        rest_mm=_rounded(np.where(unknown, UNKNOWN_MM, np.maximum(rest, LEAST_REST_MM))),
    )


def _mirrored(points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {mirrored(name): np.asarray(point) * MINUS_X for name, point in points.items()}


def _first_mean(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(28, 3) mean over the studies, aligned by translation; no landmark needs to be known in all of them."""
    fullest = known.sum(1).argmax()
    there, first = known[fullest], values[fullest]
    mean = np.where(there[:, None], first, first[there].mean(0))
    seen = known.sum(0)[:, None]
    for _ in range(3):
        shift = ((values - mean) * known[..., None]).sum(1) / known.sum(1)[:, None]
        total = ((values - shift[:, None]) * known[..., None]).sum(0)
        mean = np.where(seen > 0, total / np.maximum(seen, 1), mean)
    return mean


def _rounded(numbers: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(number), DIGITS) for number in numbers.flatten())
