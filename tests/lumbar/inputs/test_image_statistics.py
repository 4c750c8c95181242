"""Numbers of images: of the place and the grey they name, alike for a mirrored study, whatever the resolution."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.inputs.image_statistics import FEATURES, image_statistics

AXES = {"sagittal_t2": ((0, 1, 0), (0, 0, -1), (1, 0, 0)), "axial_t2": ((1, 0, 0), (0, 1, 0), (0, 0, -1))}


def study(kind: str, pixels: np.ndarray, pixel_mm: float) -> Study:
    column, row, along = (np.array(axis, float) for axis in AXES[kind])
    planes = tuple(Plane(4 * n * along, pixel_mm * column, pixel_mm * row) for n in range(len(pixels)))
    return Study("1", (Stack("2", kind, pixels, planes, tuple(range(len(pixels)))),), [])


def picture(count: int = 5) -> np.ndarray:
    """(count, 240, 200): bright below and behind, each slice darker than the one before."""
    rows, columns = np.mgrid[0:240, 0:200].astype(float)
    one = 40 + 60 * rows / 240 + 80 * columns / 200
    return np.stack([(one * (1 - 0.1 * n)).astype(np.uint8) for n in range(count)])


def test_numbers_name_their_place():
    found = image_statistics(study("sagittal_t2", picture(), 1.0), "sagittal_t2")
    assert set(found) == set(FEATURES)
    assert (found["height_mm"], found["width_mm"]) == (240, 200)
    assert found["upper"] < 0.9 < 1.1 < found["lower"] and found["front"] < 0.9 < 1.1 < found["back"]
    middle = picture()[2]
    assert found["median"] == pytest.approx(np.median(middle), abs=1)
    assert found["dark"] == pytest.approx(np.quantile(middle, 0.25), abs=1)
    assert found["contrast"] == pytest.approx(middle.std(), abs=1)
    axial = image_statistics(study("axial_t2", picture(), 1.0), "axial_t2")
    assert set(FEATURES) - set(axial) == {"upper", "lower"}
    assert axial["front"] == pytest.approx(found["upper"]) and axial["back"] == pytest.approx(found["lower"])


def test_a_finer_grid_of_the_same_picture_has_the_same_numbers():
    fine = np.stack([cv2.resize(one, (400, 480), interpolation=cv2.INTER_LINEAR) for one in picture()])
    coarse = image_statistics(study("sagittal_t2", picture(), 1.0), "sagittal_t2")
    found = image_statistics(study("sagittal_t2", fine, 0.5), "sagittal_t2")
    assert found == pytest.approx(coarse, rel=0.02, abs=1)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_a_mirrored_study_has_the_same_numbers(count):
    plain = image_statistics(study("sagittal_t2", picture(count), 1.0), "sagittal_t2")
    assert image_statistics(study("sagittal_t2", picture(count)[::-1], 1.0), "sagittal_t2") == pytest.approx(plain)
    plain = image_statistics(study("axial_t2", picture(count), 1.0), "axial_t2")
    mirrored = np.ascontiguousarray(picture(count)[:, :, ::-1])
    assert image_statistics(study("axial_t2", mirrored, 1.0), "axial_t2") == pytest.approx(plain, rel=1e-4)


def test_a_missing_series_has_none_and_a_black_one_is_finite():
    assert image_statistics(study("axial_t2", picture(), 1.0), "sagittal_t1") == {}
    black = image_statistics(study("sagittal_t2", np.zeros((1, 3, 2), np.uint8), 0.5), "sagittal_t2")
    assert np.isfinite(list(black.values())).all() and black["contrast"] == 0
