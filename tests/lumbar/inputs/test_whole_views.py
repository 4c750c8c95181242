"""Views of whole stacks, resampled or padded, of one stack or of all; and landmarks drawn in place of images."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from kernels.lumbar.dicom.geometry import lift_points, project_points, slice_distances
from kernels.lumbar.inputs.landmark_maps import SIGMA_MM
from kernels.lumbar.inputs.views import View, cut
from kernels.lumbar.labels import ROWS, Unit
from kernels.lumbar.specs import Member, ViewRequest
from tests.support.anatomy.dotted_studies import AXES, CANAL, RECESSES, middle_of, stack, study, whole
from tests.support.anatomy.spines import spine

POINTS = spine(np.random.default_rng(8))
CENTRE = middle_of(POINTS, ROWS)
UPPER = stack("axial_t2", POINTS, CENTRE + [0, 0, 60], 9, 4.0, "2", tilt_deg=5)
LOWER = stack("axial_t2", POINTS, CENTRE - [0, 0, 40], 7, 5.0, "1", tilt_deg=20)
SAGITTAL = stack("sagittal_t2", POINTS, CENTRE, 11, 4.0)


def view_of(request: ViewRequest, *stacks) -> View:
    view = cut(study(*stacks), request, Unit(), POINTS)
    assert view is not None
    return view


def test_all_stacks_follow_each_other_from_head_to_feet_and_blanks_come_last():
    view = view_of(whole("axial_t2", 20, stacks="together"), LOWER, UPPER)
    np.testing.assert_array_equal(view.pixels[:9], UPPER.pixels)
    np.testing.assert_array_equal(view.pixels[9:16], LOWER.pixels)
    assert view.pixels.shape[0] == 20 and not view.pixels[16:].any()
    assert len(view.planes) == 16
    np.testing.assert_allclose(view.planes[9].origin_mm, LOWER.planes[0].origin_mm)


def test_too_many_slices_are_thinned_evenly():
    view = view_of(whole("axial_t2", 8, stacks="together"), LOWER, UPPER)
    origins = [plane.origin_mm[2] for plane in (*UPPER.planes, *LOWER.planes)]
    taken = [int(np.argmin(np.abs(np.array(origins) - plane.origin_mm[2]))) for plane in view.planes]
    assert taken[0] == 0 and taken[-1] == 15 and set(np.diff(taken)) <= {2, 3}
    for place, index in enumerate(taken):
        np.testing.assert_array_equal(view.pixels[place], np.concatenate([UPPER.pixels, LOWER.pixels])[index])


def test_the_longest_stack_alone():
    view = view_of(whole("axial_t2", 20), LOWER, UPPER)
    assert len(view.planes) == 9 and view.series_id == "2"


def test_resampled_slices_reach_from_first_to_last_and_lie_where_they_say():
    view = view_of(whole("sagittal_t2", 21, fit="resample"), SAGITTAL)
    np.testing.assert_array_equal(view.pixels[::2], SAGITTAL.pixels)
    half = (SAGITTAL.pixels[2].astype(int) + SAGITTAL.pixels[3]) / 2
    assert np.abs(view.pixels[5] - half).max() <= 0.5
    x_mm = [plane.origin_mm[0] for plane in view.planes]
    np.testing.assert_allclose(np.diff(x_mm), 2.0)
    one = view_of(whole("sagittal_t2", 5, fit="resample"), stack("sagittal_t2", POINTS, CENTRE, 1))
    assert (one.pixels == one.pixels[0]).all() and len(one.planes) == 5


@pytest.mark.parametrize(("count", "fit"), [(20, "pad"), (7, "pad"), (16, "resample")])
def test_points_go_to_pixels_and_back_between_the_planes(count, fit):
    view = view_of(whole("sagittal_t2", count, fit=fit), SAGITTAL)
    points = np.stack([POINTS[name] for name in CANAL])
    np.testing.assert_allclose(lift_points(view.planes, project_points(view.planes, points)), points, atol=1e-6)


def test_a_view_fills_all_of_the_memory_it_is_given():
    padded = view_of(whole("axial_t2", 20, stacks="together"), LOWER, UPPER)
    for view in (padded, view_of(whole("sagittal_t2", 21, fit="resample"), SAGITTAL)):
        filled = np.full(view.pixels.shape, 77, np.uint8)
        view.sample(filled)
        np.testing.assert_array_equal(filled, view.pixels)
    assert not padded.pixels[16:].any()


def test_points_project_to_real_slices_of_their_own_stack():
    view = view_of(whole("axial_t2", 40, stacks="together"), LOWER, UPPER)
    for number, plane in enumerate((*UPPER.planes, *LOWER.planes)):
        (found,) = project_points(view.planes, plane.to_patient(80, 80)[None])
        np.testing.assert_allclose(found, [number, 80, 80], atol=1e-6)


def test_distances_grow_with_the_slices_in_every_view():
    for kind, one in (("sagittal_t2", SAGITTAL), ("axial_t2", UPPER)):
        along = AXES[kind.split("_")[0]][2]
        points = np.stack([one.planes[4].to_patient(80, 80), one.planes[4].to_patient(80, 80) + 6 * along])
        distances = slice_distances(one.planes, points)
        assert abs(distances[4, 0]) < 1e-9 and distances[4, 1] > 0
        assert (np.diff(distances[:, 0]) < 0).all(), "a later slice leaves the landmark behind"
        reversed_view = slice_distances(one.planes[::-1], points)
        np.testing.assert_allclose(reversed_view, -distances[::-1], atol=1e-9)


def test_marks_are_drawn_where_the_landmarks_lie_in_the_grey_of_their_number():
    request = whole("axial_t2", 60)
    marked = request.model_copy(update={"marks": tuple(sorted(CANAL))})
    axial = stack("axial_t2", POINTS, CENTRE, 55)
    view = view_of(marked, axial)
    assert view.planes == view_of(request, axial).planes or len(view.planes) == 55
    for number, name in enumerate(sorted(CANAL)):
        slice_, row, column = np.rint(project_points(view.planes, POINTS[name][None])[0]).astype(int)
        off_mm = abs(slice_distances(view.planes, POINTS[name][None])[slice_, 0])
        expected = 255 * (number + 1) / 5 * np.exp(-0.5 * (off_mm / SIGMA_MM) ** 2)
        assert view.pixels[slice_, row, column] == pytest.approx(expected, rel=0.05)
    assert not view.pixels[55:].any()


def test_marks_that_are_unknown_are_not_drawn_and_none_is_a_missing_view():
    marked = whole("axial_t2", 60).model_copy(update={"marks": tuple(sorted(CANAL))})
    axial = study(stack("axial_t2", POINTS, CENTRE, 55))
    only = cut(axial, marked, Unit(), {CANAL[4]: POINTS[CANAL[4]]})
    assert only is not None and only.pixels.max() > 200
    assert cut(axial, marked, Unit(), {RECESSES[0]: POINTS[RECESSES[0]]}) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slices": {"by": "middle", "count": 3, "fit": "pad"}}, "with all slices"),
        ({"slices": {"by": "all", "count": 3, "stacks": "together"}}, "padded, not resampled"),
        ({"slices": {"by": "all", "count": 3, "near": ["spinal_canal_stenosis_l1_l2"]}}, "all slices are taken"),
        ({"normalisation": "zscore"}, "normalisation unit"),
        ({"mirror_right": True}, "reversed order"),
        ({"marks": ["left_subarticular_stenosis_l1_l2"]}, "midline"),
        ({"marks": ["spinal_canal_stenosis"]}, "midline"),
    ],
)
def test_requests_that_make_no_sense_are_refused(changes, says):
    with pytest.raises(ValidationError, match=says):
        ViewRequest.model_validate(whole("axial_t2", 20).model_dump() | changes)


def test_padded_sagittal_stacks_have_no_mirror_tta():
    request = whole("sagittal_t2", 20)
    with pytest.raises(ValidationError, match="padding has one end"):
        Member(name="m", role="localiser", unit="study", inputs=(request,), targets=tuple(CANAL), tta=("mirror",))
