"""The phantom in ways that only tests need: mirrored patients, tissues instead of signals, the best possible reader."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.phantom.aggregates import ROWS_PREVALENCE
from training.phantom.body import signal_at
from training.phantom.protocol import AXIAL_T2, SeriesPlan, SlicePlan
from training.phantom.severity import GRADE_MARGIN, GRADE_SPREAD
from training.phantom.sizes import Anatomy, DiscLevel, Sided
from training.phantom.tissue import Tissue

FLIP = np.array([-1.0, 1.0, 1.0])


def mirrored_patient(anatomy: Anatomy) -> Anatomy:
    """The mirrored patient: x -> -x, left and right exchanged; the left axis points to that patient's left again."""
    curve = anatomy.curve
    return replace(
        anatomy,
        curve=replace(curve, centres=curve.centres * FLIP, axes=curve.axes * FLIP * FLIP[:, None]),
        levels=tuple(_mirrored_level(level) for level in anatomy.levels),
        root_places=anatomy.root_places * np.array([-1.0, 1.0]),
        situs=-anatomy.situs,
    )


def _mirrored_level(level: DiscLevel) -> DiscLevel:
    sided = {name: value for name, value in vars(level).items() if isinstance(value, Sided)}
    return replace(level, **{name: Sided(value.right, value.left) for name, value in sided.items()})


def mirrored_series(plan: SeriesPlan) -> SeriesPlan:
    """The series that shows the mirrored patient alike: sagittal stacks reversed, axials flipped."""
    return replace(plan, slices=tuple(_mirrored_slice(plan, one) for one in plan.slices))


def _mirrored_slice(plan: SeriesPlan, place: SlicePlan) -> SlicePlan:
    position, along_row = place.position, place.along_row
    if plan.description == AXIAL_T2:
        position, along_row = position + along_row * (plan.columns - 1) * plan.spacing_mm, -along_row
    return replace(place, position=position * FLIP, along_row=along_row * FLIP, along_column=place.along_column * FLIP)


def tissue_at(points: NDArray[np.floating], anatomy: Anatomy) -> NDArray[np.int64]:
    """The tissue that has the largest share of each patient point (N, 3) mm."""
    one_hot = np.eye(len(Tissue), dtype=np.float32)
    return np.argmax([signal_at(points, anatomy, table, edge=1e-3) for table in one_hot], axis=0)


def grade_posterior(narrowing: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the best reader of the measures (..., 25) answers: probabilities (..., 25, 3) of the grades."""
    cdf = np.vectorize(lambda value: 0.5 * (1.0 + math.erf(value / math.sqrt(2.0))), otypes=[float])
    lows, highs = np.arange(3) + GRADE_MARGIN, np.arange(3) + 1.0 - GRADE_MARGIN
    measure = narrowing[..., None]
    likelihood = cdf((measure - lows) / GRADE_SPREAD) - cdf((measure - highs) / GRADE_SPREAD)
    joint = ROWS_PREVALENCE * (likelihood + 1e-12)
    return np.asarray(joint / joint.sum(axis=-1, keepdims=True))
