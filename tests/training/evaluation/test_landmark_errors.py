"""Localisation errors: what is measured, and what training draws from."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from training.evaluation.landmark_errors import (
    LARGEST_OFFSET_MM,
    MOST_OFFSETS,
    LandmarkError,
    landmark_errors,
    offsets_by_group,
)

LEFT, RIGHT = (f"{side}_neural_foraminal_narrowing_l4_l5" for side in ("left", "right"))


def test_offsets_point_from_the_annotated_to_the_located_point_and_right_ones_are_mirrored():
    truth = {"1": {LEFT: np.array([20.0, 1, 2]), RIGHT: np.array([-20.0, 1, 2])}}
    located = {"1": {LEFT: np.array([24.0, 2, 2]), RIGHT: np.array([-24.0, 2, 2])}}
    errors = landmark_errors(located, truth)
    assert errors["sagittal_t1"].offsets_mm == [[4.0, 1.0, 0.0], [4.0, 1.0, 0.0]], "both lie too far from the middle"
    assert offsets_by_group(errors).keys() == {"foraminal"}
    assert offsets_by_group(errors)["foraminal"].tolist() == [[4.0, 1.0, 0.0]] * 2


def test_other_levels_and_points_that_were_not_found_are_no_offsets():
    truth = {str(study): {LEFT: np.zeros(3)} for study in range(4)}
    located = {"0": {LEFT: np.array([0, 0, 3.0])}, "1": {LEFT: np.array([0, 0, LARGEST_OFFSET_MM + 1])}, "2": {}}
    (error,) = landmark_errors(located, truth).values()
    assert error.offsets_mm == [[0.0, 0.0, 3.0]] and error.count == 4
    lost = landmark_errors({}, truth)
    assert lost["sagittal_t1"].offsets_mm == [] and offsets_by_group(lost) == {}


def test_of_many_offsets_some_are_kept_from_all_studies():
    truth = {str(study): {LEFT: np.zeros(3)} for study in range(3000)}
    located = {study: {LEFT: np.array([float(study) / 300, 0, 0])} for study in truth}
    (error,) = landmark_errors(located, truth).values()
    kept = [offset[0] for offset in error.offsets_mm]
    assert len(kept) == MOST_OFFSETS and kept[0] == 0 and kept[-1] == pytest.approx(10, abs=0.05)
    assert np.mean(kept) == pytest.approx(5, abs=0.1)


def test_training_draws_the_same_from_errors_that_were_written_and_read():
    error = LandmarkError(2, 1.0, 2.0, 0.8, [[1.0, 0.5, 0.0]])
    again = LandmarkError(**json.loads(json.dumps(asdict(error))))
    assert json.dumps(again.drawn) == json.dumps(error.drawn)
    assert LandmarkError(2, 1.0, 2.0, 0.8).drawn == (0.8, [])


def test_the_manifest_carries_the_distribution_across_slices():
    truth = {str(study): {LEFT: np.zeros(3), RIGHT: np.zeros(3)} for study in range(101)}
    located = {
        study: {LEFT: np.array([int(study) / 10, 1.0, 0]), RIGHT: np.array([-int(study) / 10, 1.0, 0])}
        for study in truth
    }
    (error,) = landmark_errors(located, truth).values()
    carried = error.for_manifest("sagittal_t1")
    assert carried is not None and carried.count == 202 and carried.median_mm == pytest.approx(1)
    np.testing.assert_allclose(carried.across_mm, np.linspace(0, 10, 21), atol=0.1)
    (lost,) = landmark_errors({"0": located["0"]}, truth).values()
    assert lost.for_manifest("sagittal_t1") is None, "no distribution of a few that were found"
