"""Several series, missing series, faults and disagreement: `locate` answers in the right place, or says it guessed."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.lumbar.answers import locate as locating
from kernels.lumbar.answers.localiser_answers import LocaliserAnswer, calibrated, merge
from kernels.lumbar.answers.spine_shape import Expectation
from kernels.lumbar.inputs.views import cut
from kernels.lumbar.labels import ROWS, Unit
from kernels.lumbar.manifest import Calibration
from kernels.lumbar.specs import SliceChoice, ViewRequest
from tests.support.anatomy.dotted_studies import (
    CANAL,
    FORAMINA,
    PIXEL_MM,
    RECESSES,
    Reader,
    middle_of,
    stack,
    study,
    whole,
)
from tests.support.anatomy.spines import spine, spine_shape, spines
from training.data.fit_spine_shape import fit_shape

POINTS = spine(np.random.default_rng(5))
EXPECTATION = Expectation(spine_shape())
CENTRE = middle_of(POINTS, ROWS)
SAGITTAL_T2 = stack("sagittal_t2", POINTS, CENTRE, 15, series="20")
SAGITTAL_T1 = stack("sagittal_t1", POINTS, CENTRE, 17, series="10")
AXIAL = stack("axial_t2", POINTS, CENTRE, 55, series="30")
UPPER = stack("axial_t2", POINTS, middle_of(POINTS, [name for name in RECESSES if "_l1" in name]), 9, series="31")

CANAL_READER = Reader("canal", CANAL, whole("sagittal_t2", 20))
FORAMINA_READER = Reader("foramina", FORAMINA, whole("sagittal_t1", 20))
RECESS_READER = Reader("recesses", RECESSES, whole("axial_t2", 64, stacks="together"))


def locate(of, readers, expectation=None):
    """One study alone."""
    return locating.locate([of], readers, expectation)[0]


def off_mm(located, row):
    return float(np.linalg.norm(located.points[row] - POINTS[row]))


def kinds(of):
    return {problem.kind for problem in of.problems}


def near_canal(count=3):
    slices = SliceChoice(by="landmark", count=count, near=("spinal_canal_stenosis",), max_distance_mm=10)
    return ViewRequest(series="axial_t2", slices=slices, size_px=160, normalisation="unit")


def test_every_view_is_found_where_its_landmarks_lie():
    whole_study = study(SAGITTAL_T1, SAGITTAL_T2, AXIAL)
    located = locate(whole_study, [CANAL_READER, FORAMINA_READER, RECESS_READER], EXPECTATION)
    assert max(off_mm(located, row) for row in ROWS) < 4
    assert not located.guessed and not whole_study.problems
    assert list(located.confidence.values()) == pytest.approx([0.9] * len(ROWS))


def test_left_and_right_in_different_series():
    """Two axial series, each with the dots of one side only."""
    left = stack("axial_t2", {n: p for n, p in POINTS.items() if n.startswith("left")}, CENTRE, 50, 4.5, "31")
    right = stack("axial_t2", {n: p for n, p in POINTS.items() if n.startswith("right")}, CENTRE, 55, 4.0, "32")
    reader = Reader("recesses", RECESSES, whole("axial_t2", 128, stacks="together"))
    located = locate(study(left, right), [reader])
    assert max(off_mm(located, row) for row in RECESSES) < 4


def test_one_stack_a_disc_with_its_own_tilt():
    names = {level: [name for name in RECESSES if name.endswith(level)] for level in ("l3_l4", "l4_l5", "l5_s1")}
    tilts = {"l3_l4": 0.0, "l4_l5": 12.0, "l5_s1": 28.0}
    stacks = [stack("axial_t2", POINTS, middle_of(POINTS, names[level]), 5, 4.0, "30", tilts[level]) for level in names]
    located = locate(study(*stacks), [RECESS_READER])
    for level in names:
        assert max(off_mm(located, row) for row in names[level]) < 5


def test_neighbouring_slices_come_from_the_disc_s_own_stack():
    levels = ("l3_l4", "l4_l5", "l5_s1")
    discs = {level: middle_of(POINTS, [name for name in RECESSES if name.endswith(level)]) for level in levels}
    stacks = {level: stack("axial_t2", POINTS, discs[level], 3, 4.0, "30", 10.0 * n) for n, level in enumerate(levels)}
    for level in levels:
        view = cut(study(*stacks.values()), near_canal(5), Unit(level=level), POINTS)
        assert view is not None
        own = stacks[level].planes
        assert all(min(np.abs(one.origin_mm - plane.origin_mm).max() for plane in own) < 1 for one in view.planes)


def test_a_level_that_no_axial_slice_covers_is_guessed_and_said_to_be():
    lower = stack("axial_t2", POINTS, middle_of(POINTS, [n for n in RECESSES if "l4_l5" in n]), 25, series="30")
    half = study(SAGITTAL_T1, SAGITTAL_T2, lower)
    at_canal = Reader("axial", ("left_subarticular_stenosis", "right_subarticular_stenosis"), near_canal(), "level")
    located = locate(half, [CANAL_READER, FORAMINA_READER, at_canal], EXPECTATION)
    above = {name for name in RECESSES if name.endswith(("l1_l2", "l2_l3"))}
    assert located.guessed == above
    assert all(located.confidence[row] == 0 and off_mm(located, row) < 8 for row in above)
    assert kinds(half) == {"guessed-landmarks"}
    assert max(off_mm(located, row) for row in ROWS if row not in above) < 5


@pytest.mark.parametrize(
    ("there", "reader", "found", "missing"),
    [(SAGITTAL_T2, CANAL_READER, CANAL, FORAMINA), (SAGITTAL_T1, FORAMINA_READER, FORAMINA, CANAL)],
)
def test_one_sagittal_kind_carries_the_other(there, reader, found, missing):
    one_sided = study(there)
    located = locate(one_sided, [CANAL_READER, FORAMINA_READER], EXPECTATION)
    assert max(off_mm(located, row) for row in found) < 4
    assert located.guessed >= set(missing) and np.median([off_mm(located, row) for row in missing]) < 6
    assert kinds(one_sided) == {"nothing-to-look-at", "guessed-landmarks"}
    assert reader.member.name in located.by_member


def test_an_axial_localiser_works_without_sagittal_t2():
    """What it needs of the canal comes from the foramina."""
    at_canal = Reader("axial", ("left_subarticular_stenosis", "right_subarticular_stenosis"), near_canal(5), "level")
    located = locate(study(SAGITTAL_T1, AXIAL), [CANAL_READER, FORAMINA_READER, at_canal], EXPECTATION)
    assert max(off_mm(located, row) for row in RECESSES) < 5


def test_a_study_without_any_image_has_no_landmarks():
    empty = study()
    located = locate(empty, [CANAL_READER, RECESS_READER], EXPECTATION)
    assert not located.points and kinds(empty) == {"nothing-to-look-at"}


@pytest.mark.parametrize(
    ("broken", "kind"), [("nan", "not-finite"), ("outside", "outside-the-image"), ("raises", "localiser-failed")]
)
def test_a_broken_localiser_never_takes_the_others_down(broken, kind):
    bad = Reader("bad", CANAL, whole("sagittal_t2", 20), broken=broken)
    beside = study(SAGITTAL_T1, SAGITTAL_T2)
    located = locate(beside, [bad, CANAL_READER, FORAMINA_READER], EXPECTATION)
    assert max(off_mm(located, row) for row in CANAL) < 4 and kind in kinds(beside)
    alone = study(SAGITTAL_T1, SAGITTAL_T2)
    located = locate(alone, [bad, FORAMINA_READER], EXPECTATION)
    assert located.guessed >= set(CANAL) and np.median([off_mm(located, row) for row in CANAL]) < 6
    assert {kind, "guessed-landmarks"} <= kinds(alone)
    assert "out of memory" in alone.problems[0].detail or broken != "raises"


def test_without_any_localiser_left_the_average_position_stands_in():
    lost = study(SAGITTAL_T2)
    located = locate(lost, [Reader("bad", CANAL, whole("sagittal_t2", 20), broken="raises")], EXPECTATION)
    assert located.guessed == set(ROWS)
    assert np.median([off_mm(located, row) for row in ROWS]) < 30


def test_a_disc_too_low_is_left_out_when_others_know_better():
    low = Reader("low", CANAL, whole("sagittal_t2", 20), shift_px=34 / PIXEL_MM, confidence=0.6)
    beside = study(SAGITTAL_T2)
    located = locate(beside, [low, CANAL_READER])
    assert max(off_mm(located, row) for row in CANAL) < 4
    assert all(located.confidence[row] == pytest.approx(0.45) for row in CANAL), "half of the localisers disagree"


def test_a_landmark_that_the_others_contradict_is_replaced():
    wrong = dict(POINTS)
    wrong[CANAL[1]] = POINTS[CANAL[2]] + [0, 6, 8.0]
    odd = study(stack("sagittal_t2", wrong, CENTRE, 15), SAGITTAL_T1)
    located = locate(odd, [CANAL_READER, FORAMINA_READER], EXPECTATION)
    assert CANAL[1] in located.guessed and off_mm(located, CANAL[1]) < 6
    assert "implausible-landmark" in kinds(odd)


def test_who_finds_the_slice_and_who_then_finds_the_place():
    both_series = study(AXIAL, UPPER)
    finder = Reader("finder", RECESSES, whole("axial_t2", 64, stacks="together"), answers="slices", confidence=0.8)
    sides = ("left_subarticular_stenosis", "right_subarticular_stenosis")
    near = SliceChoice(by="landmark", count=3, near=sides, max_distance_mm=10)
    request = ViewRequest(series="axial_t2", slices=near, size_px=160, normalisation="unit")
    refiner = Reader("refiner", sides, request, unit="level", confidence=0.5)
    coarse = locate(study(AXIAL, UPPER), [finder])
    assert all(abs(coarse.points[row][2] - POINTS[row][2]) < 4 < off_mm(coarse, row) for row in RECESSES)
    for order in ([finder, refiner], [refiner, finder]):
        located = locate(both_series, order)
        assert np.median([off_mm(located, row) for row in RECESSES]) < 4
        assert located.confidence[RECESSES[0]] == pytest.approx(0.4), "no surer than whoever found the slice"


def test_what_a_calibrated_localiser_does_not_believe_itself_is_not_found():
    sceptic = Calibration(slope=1.0, offset=-6.0)
    reader = Reader("canal", CANAL, whole("sagittal_t2", 20), calibration=sceptic)
    located = locate(study(SAGITTAL_T2, SAGITTAL_T1), [reader, FORAMINA_READER], EXPECTATION)
    assert located.guessed >= set(CANAL)
    assert located.by_member["canal"][CANAL[0]].confidence == pytest.approx(calibrated(0.9, sceptic))


def test_agreement_is_averaged_by_confidence_and_disagreement_is_not():
    near, far = np.zeros(3), np.array([0.0, 0.0, 40.0])
    merged = merge([LocaliserAnswer(near, 0.9), LocaliserAnswer(near + 4, 0.3), LocaliserAnswer(far, 0.8)])
    np.testing.assert_allclose(merged.point, [1.0, 1.0, 1.0], atol=1e-4)
    assert merged.confidence == pytest.approx(0.4)
    tied = merge([LocaliserAnswer(near, 0.5), LocaliserAnswer(far, 0.5)])
    np.testing.assert_allclose(tied.point, far / 2, atol=1e-4)
    nothing = merge([LocaliserAnswer(near, 0.0), LocaliserAnswer(near + 2, 0.0)])
    assert nothing.confidence == 0 and np.allclose(nothing.point, 1)


def test_what_no_training_study_had_is_not_guessed():
    shape = fit_shape([{name: one[name] for name in (*CANAL, "centre_sagittal_t2")} for one in spines(30)])
    located = locate(study(SAGITTAL_T2), [CANAL_READER], Expectation(shape))
    assert set(located.points) == set(CANAL) and not located.guessed
    nothing = locate(study(SAGITTAL_T2), [RECESS_READER], Expectation(shape))
    assert set(nothing.points) == set(CANAL) == nothing.guessed
