"""Views of as many slices as lie near a landmark: the others are blank, and stay where they would be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from kernels.lumbar.inputs.views import View, cut, mirror_pixels
from kernels.lumbar.labels import ROWS, Unit, mirrored
from kernels.lumbar.specs import Member, ViewRequest
from tests.support.anatomy.dotted_studies import middle_of, stack, study
from tests.support.anatomy.spines import spine
from tests.support.anatomy.studies import MINUS_X, mirror_study
from training.data.samples.changed_crops import Change
from training.data.samples.sample_targets import in_view

POINTS = spine(np.random.default_rng(8))
ROW = "spinal_canal_stenosis_l3_l4"
DOTTED = stack("sagittal_t2", POINTS, middle_of(POINTS, ROWS), 11, 4.0)
SAGITTAL = replace(DOTTED, pixels=np.maximum(DOTTED.pixels, 40))  # no slice is black
STUDY = study(SAGITTAL)


def request(within_mm: float | None, count: int = 5, **changes: object) -> ViewRequest:
    slices = {"by": "landmark", "count": count, "within_mm": within_mm}
    content = {"series": "sagittal_t2", "centre": ["spinal_canal_stenosis"], "size_mm": 60, "size_px": 32}
    return ViewRequest.model_validate(content | {"slices": slices, "normalisation": "unit"} | changes)


def view_at(index: float, within_mm: float | None, count: int = 5) -> View:
    """At a fractional slice of the stack."""
    first, last = SAGITTAL.centres_mm[0], SAGITTAL.centres_mm[-1]
    view = cut(STUDY, request(within_mm, count), Unit("l3_l4"), {ROW: first + (last - first) * index / 10})
    assert view is not None
    return view


def shown(view: View) -> list[bool]:
    return view.pixels.any((1, 2)).tolist()


@pytest.mark.parametrize(
    ("index", "within_mm", "slots"),
    [
        (5.0, 5.0, [0, 1, 1, 1, 0]),
        (5.0, 8.0, [1, 1, 1, 1, 1]),
        (5.3, 6.0, [0, 1, 1, 1, 0]),
        (5.3, 3.0, [0, 0, 1, 1, 0]),
        (5.3, 0.1, [0, 0, 1, 0, 0]),
        (0.0, 8.0, [0, 0, 1, 1, 1]),
        (9.4, 9.0, [0, 1, 1, 1, 0]),
    ],
)
def test_only_slices_near_the_landmark_are_shown(index: float, within_mm: float, slots: list[int]) -> None:
    view, whole = view_at(index, within_mm), view_at(index, None)
    assert shown(view) == [bool(one) for one in slots]
    for slot, is_shown in enumerate(slots):
        if is_shown:
            np.testing.assert_array_equal(view.pixels[slot], whole.pixels[slot])
    assert len(view.planes) == sum(slots) and view.first == slots.index(1)


@pytest.mark.parametrize("index", [0.0, 2.5, 3.3, 4.5, 5.0, 9.9])
@pytest.mark.parametrize(("within_mm", "count"), [(5.0, 5), (6.0, 4), (14.0, 7), (1.0, 3)])
def test_a_mirrored_study_shows_the_mirror_image(index: float, within_mm: float, count: int) -> None:
    view = view_at(index, within_mm, count)
    (point,) = (SAGITTAL.centres_mm[0] + (SAGITTAL.centres_mm[-1] - SAGITTAL.centres_mm[0]) * index / 10,)
    opposite = cut(mirror_study(STUDY), view.request, Unit("l3_l4"), {mirrored(ROW): point * MINUS_X})
    assert opposite is not None
    np.testing.assert_array_equal(opposite.pixels, mirror_pixels(view.pixels, "sagittal_t2"))
    assert opposite.first == count - view.first - len(view.planes)


def test_a_right_side_is_shown_as_a_left_one() -> None:
    row = "neural_foraminal_narrowing_l3_l4"
    asked = request(5.0, series="sagittal_t1", centre=["neural_foraminal_narrowing"], mirror_right=True)
    one = study(stack("sagittal_t1", POINTS, middle_of(POINTS, ROWS), 9, 4.0))
    for side in ("left", "right"):
        view = cut(one, asked, Unit("l3_l4", side), POINTS)
        other = cut(mirror_study(one), asked, Unit("l3_l4", side).mirrored(), _turned())
        assert view is not None and other is not None and f"{side}_{row}" in POINTS
        np.testing.assert_array_equal(view.pixels, other.pixels)
        assert view.first == other.first


def _turned() -> dict[str, np.ndarray]:
    return {mirrored(row): point * MINUS_X for row, point in POINTS.items()}


def test_a_moved_window_blanks_anew_what_the_stack_lacks() -> None:
    view = view_at(5.0, 8.0)
    for slices, expected in ((0, [5, 0]), (4, [4, 0]), (5, [3, 0]), (-5, [3, 2])):
        changed = Change(np.eye(2), np.zeros(2), slices).of(view)
        assert [sum(shown(changed)), changed.before] == expected


def test_distances_are_those_of_the_slices_that_are_shown() -> None:
    member = Member(name="m", role="grader", unit="level", inputs=(request(5.0),), targets=("spinal_canal_stenosis",))
    view = view_at(5.0, 5.0)
    _, distance_mm = in_view(view, member, Unit("l3_l4"), {ROW: SAGITTAL.centres_mm[5]})
    assert np.isfinite(distance_mm[:, 0]).tolist() == shown(view)
    assert distance_mm[2, 0] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"slices": {"by": "middle", "count": 3, "within_mm": 5}}, "within_mm goes with slices by landmark"),
        ({"normalisation": "zscore"}, "within_mm needs normalisation unit"),
        ({"marks": ["spinal_canal_stenosis_l3_l4"]}, "and no marks"),
    ],
)
def test_what_blanks_do_not_fit_is_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        request(5.0, **changes)


def test_localisers_count_their_slices_from_the_first() -> None:
    with pytest.raises(ValidationError, match="within_mm is for graders"):
        Member(name="m", role="localiser", unit="level", inputs=(request(5.0),), targets=("spinal_canal_stenosis",))
