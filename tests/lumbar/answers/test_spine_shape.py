"""The shape of the spine: what it expects where, what it contradicts, and that it has no preferred side."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.lumbar.answers.spine_shape import Expectation
from kernels.lumbar.labels import LEVELS, ROWS, mirrored
from kernels.lumbar.manifest import SHAPE_POINTS, STACK_CENTRES
from tests.support.anatomy.spines import spine_shape, spines
from training.data.fit_spine_shape import MINUS_X, fit_shape

SHAPE = spine_shape()
EXPECTATION = Expectation(SHAPE)
TEST = spines(20, seed=1)
CANAL = [f"spinal_canal_stenosis_{level}" for level in LEVELS]


def landmarks(points: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {row: points[row] for row in ROWS}


def off_mm(points: dict[str, np.ndarray], known: dict[str, np.ndarray], row: str) -> float:
    return float(np.linalg.norm(EXPECTATION.of(known, row)[0] - points[row]))


def test_the_rest_says_where_a_landmark_lies():
    misses = [off_mm(points, landmarks(points), row) for points in TEST for row in ROWS]
    assert np.median(misses) < 2.5 and np.quantile(misses, 0.95) < 6


def test_the_other_sagittal_view_stands_in():
    """A study without Sagittal T2: its canal is where the foramina let expect it."""
    misses = []
    for points in TEST:
        foramina = {row: points[row] for row in ROWS if "foraminal" in row}
        misses += [off_mm(points, foramina, row) for row in CANAL]
    assert np.median(misses) < 3


def test_stack_centres_alone_give_the_average_position():
    for points in TEST:
        centres = {name: points[name] for name in STACK_CENTRES}
        assert np.median([off_mm(points, centres, row) for row in ROWS]) < 25


def test_the_expected_spread_is_honest():
    standardised = []
    for points in TEST:
        expected, covariance = EXPECTATION.of(landmarks(points), CANAL[2])
        off = points[CANAL[2]] - expected
        standardised.append(off @ np.linalg.solve(covariance, off) / 3)
    assert 0.05 < np.mean(standardised) < 3


@pytest.mark.parametrize("row", [CANAL[0], CANAL[2], "left_neural_foraminal_narrowing_l4_l5"])
def test_a_landmark_on_the_next_disc_is_contradicted_and_nothing_else(row):
    for points in TEST:
        wrong = landmarks(points)
        wrong[row] = wrong[row] - [0, 0, 34.0]
        assert EXPECTATION.contradicted(wrong, {}) == [row]


def test_what_is_right_is_left_alone():
    assert not [row for points in TEST for row in EXPECTATION.contradicted(landmarks(points), {})]


def test_of_two_that_disagree_the_less_confident_one_goes():
    points = landmarks(TEST[0])
    pair = {CANAL[1]: points[CANAL[1]], CANAL[2]: points[CANAL[2]], CANAL[3]: points[CANAL[3]] - [0, 0, 34.0]}
    sure = {CANAL[1]: 0.9, CANAL[2]: 0.9, CANAL[3]: 0.1}
    assert EXPECTATION.contradicted(pair, sure) == [CANAL[3]]


def test_ten_foramina_of_another_count_do_not_outvote_a_surer_canal():
    for points in TEST[:5]:
        known = {row: points[row] for row in ROWS if "subarticular" not in row}
        wrong = dict(known)
        foramina = [row for row in known if "foraminal" in row]
        for row in foramina:
            wrong[row] = known[row] - (points[CANAL[1]] - points[CANAL[2]])  # a level too low
        sure = {row: 0.8 if row in CANAL else 0.5 for row in wrong}
        assert sorted(EXPECTATION.contradicted(wrong, sure)) == sorted(foramina)
        doubt = {row: 0.3 if row in CANAL else 0.9 for row in wrong}
        assert sorted(EXPECTATION.contradicted(wrong, doubt)) == sorted(CANAL)


def test_a_mirrored_study_is_expected_mirrored():
    for points in TEST[:5]:
        known = {name: points[name] for name in list(points)[:9]}
        turned = {mirrored(name): point * MINUS_X for name, point in known.items()}
        for row in ROWS:
            straight, crossed = EXPECTATION.of(known, row)[0], EXPECTATION.of(turned, mirrored(row))[0]
            np.testing.assert_allclose(straight * MINUS_X, crossed, atol=0.3)


def test_missing_landmarks_do_not_spoil_the_fit():
    random = np.random.default_rng(3)
    some = [{name: one[name] for name in one if name in CANAL or random.random() < 0.8} for one in spines(60)]
    shape = fit_shape(some)
    assert shape is not None
    expectation = Expectation(shape)
    misses = [
        np.linalg.norm(expectation.of(landmarks(points), row)[0] - points[row]) for points in TEST for row in ROWS
    ]
    assert np.median(misses) < 3


def test_too_few_studies_have_no_shape():
    assert fit_shape(spines(2)) is None
    assert fit_shape([{row: one[row] for row in CANAL[:2]} for one in spines(9)]) is None
    assert fit_shape([{CANAL[0]: np.zeros(3)}] * 50) is None


def test_a_shape_names_every_coordinate():
    assert len(SHAPE.mean_mm) == 3 * len(SHAPE_POINTS) == 3 * (len(ROWS) + 3)
    with pytest.raises(ValueError, match="coordinates"):
        SHAPE.model_validate(SHAPE.model_dump() | {"rest_mm": (1.0,)})


def test_studies_of_one_condition_have_a_shape_of_it_alone():
    canals = [{name: one[name] for name in (*CANAL, "centre_sagittal_t2")} for one in spines(9)]
    shape = fit_shape([*canals, {CANAL[0]: np.zeros(3), CANAL[1]: np.ones(3)}])
    assert shape is not None
    expectation = Expectation(shape)
    assert expectation.known == {*CANAL, "centre_sagittal_t2"}
    misses = []
    for points in TEST:
        known = {row: points[row] for row in CANAL}
        misses += [float(np.linalg.norm(expectation.of(known, row)[0] - points[row])) for row in CANAL]
        # A level too low is found out, whatever the points of other conditions are, of which nothing is known.
        step = points[CANAL[3]] - points[CANAL[2]]
        wrong = known | {CANAL[2]: points[CANAL[2]] + step, "left_subarticular_stenosis_l1_l2": points[CANAL[0]] + 300}
        assert CANAL[2] in expectation.contradicted(wrong, dict.fromkeys(wrong, 0.9))
        assert not expectation.contradicted(known, dict.fromkeys(known, 0.9))
    assert np.median(misses) < 4
    assert EXPECTATION.known == set(SHAPE_POINTS)
