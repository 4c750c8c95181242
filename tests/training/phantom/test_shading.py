"""Shading: a dark belly, bands before the spine in sagittal series alone, and both sides alike."""

from __future__ import annotations

import numpy as np
import pytest

from training.phantom.curve import DISCS
from training.phantom.protocol import AXIAL_T2, SAGITTAL_T2
from training.phantom.severity import sample_severity
from training.phantom.shading import Shading, sample_shading
from training.phantom.sizes import WALL_MM, Anatomy, sample_anatomy

SERIES = 60


def anatomies() -> list[Anatomy]:
    rngs = [np.random.default_rng((5, number)) for number in range(SERIES)]
    return [sample_anatomy(rng, sample_severity(rng)) for rng in rngs]


def shadings(description: str) -> list[tuple[Anatomy, Shading]]:
    rng = np.random.default_rng(3)
    return [(anatomy, sample_shading(rng, anatomy, description)) for anatomy in anatomies()]


def at(anatomy: Anatomy, shading: Shading, ahead_mm: float, left_mm: float = 0.0) -> float:
    """Factor so many mm before the canal at L3/L4."""
    place = anatomy.curve.point(DISCS.index("l3_l4"), left_mm, WALL_MM + 6.0 - ahead_mm, 0.0)
    return float(shading.at(place.astype(np.float32)))


def test_the_belly_is_dark_as_in_real_images():
    """SPIDER, grey values by distance before the canal: 51, 28, 10, 9, 10 at 40 to 120 mm, of 200 in the canal."""
    pairs = shadings(SAGITTAL_T2)
    canal = np.array([at(*pair, 0.0) for pair in pairs])
    belly = np.array([at(*pair, 100.0) for pair in pairs]) / canal
    assert 0.1 < np.median(belly) < 0.35
    assert belly.min() < 0.06  # as dark as the darkest real ones
    assert belly.max() > 0.5  # and scanners that correct for it exist


def test_the_canal_itself_is_never_in_a_band():
    for anatomy, shading in shadings(SAGITTAL_T2):
        if shading.band is not None:
            for disc in ("l1_l2", "l3_l4", "l5_s1"):
                place = anatomy.curve.point(DISCS.index(disc), 0.0, WALL_MM + 6.0, 0.0)
                assert (place - shading.band.edge) @ shading.band.ahead < -10.0


@pytest.mark.parametrize(("description", "share"), [(SAGITTAL_T2, 0.7), (AXIAL_T2, 0.0)])
def test_bands_belong_to_sagittal_series(description: str, share: float):
    banded = [shading.band is not None for _, shading in shadings(description)]
    assert np.mean(banded) == pytest.approx(share, abs=0.2 if share else 0.0)


def test_left_and_right_are_shaded_alike():
    for _, shading in shadings(SAGITTAL_T2)[:10]:
        points = np.random.default_rng(0).uniform(-80, 80, (50, 3)).astype(np.float32)
        flipped = points * np.array([-1.0, 1.0, 1.0], np.float32)
        np.testing.assert_array_equal(shading.at(points), shading.at(flipped))
