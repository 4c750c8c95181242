"""Asymmetric crops: their centre lies off the landmark, on the same side of a mirrored patient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kernels.lumbar.inputs.member_inputs import InputCache
from kernels.lumbar.inputs.views import cut
from kernels.lumbar.labels import UNITS, Unit, mirrored
from kernels.lumbar.specs import CropOffset, Member, SliceChoice, ViewRequest
from tests.support.anatomy.studies import MINUS_X, mirror_study
from training.data.samples.changed_crops import Change

UNCHANGED = Change(np.eye(2), np.zeros(2))


def recess(mirror_right=False, **offset):
    return ViewRequest.model_validate(
        {
            "series": "axial_t2",
            "centre": ["subarticular_stenosis"],
            "slices": {"by": "landmark", "count": 3},
            "size_mm": 40,
            "size_px": 64,
            "mirror_right": mirror_right,
            "crop_offset": offset,
        }
    )


def foramen(**offset):
    return recess().model_copy(
        update={
            "series": "sagittal_t1",
            "centre": ("neural_foraminal_narrowing",),
            "crop_offset": CropOffset(**offset),
            "mirror_right": True,
        }
    )


def middle_mm(view):
    """Patient mm of the middle of a view's middle slice."""
    half = (view.request.size_px - 1) / 2
    return view.planes[len(view.planes) // 2].to_patient(half, half)


@pytest.mark.parametrize(("side", "outward"), [("left", 1.0), ("right", -1.0)])
def test_the_centre_lies_off_the_landmark_by_the_patient(foreign_study, side, outward):
    """Patient mm: +x to the left, +y to the back, +z to the head; oblique slices, so about."""
    study, landmarks = foreign_study
    unit = Unit("l3_l4", side)
    at, off = (
        middle_mm(cut(study, recess(**offset), unit, landmarks)) for offset in ({}, {"outward_mm": 12, "front_mm": 5})
    )
    np.testing.assert_allclose(off - at, [12 * outward, -5, 0], atol=2.5)
    at, off = (middle_mm(cut(study, foramen(**one), unit, landmarks)) for one in ({}, {"front_mm": 10, "up_mm": -4}))
    np.testing.assert_allclose(off - at, [0, -10, -4], atol=2.5)


@pytest.mark.parametrize(
    "request_", [recess(True, outward_mm=11.3, front_mm=4), recess(outward_mm=11.3), foramen(front_mm=9)]
)
def test_a_mirrored_study_is_shown_its_mirror_image_to_the_bit(foreign_study, request_):
    study, landmarks = foreign_study
    member = Member(
        name="one", role="grader", unit="level_side", inputs=(request_,), targets=("subarticular_stenosis",)
    )
    turned = {mirrored(row): point * MINUS_X for row, point in landmarks.items()}
    (shown,) = InputCache([study], [landmarks]).inputs_of(member).tensors
    (opposite,) = InputCache([mirror_study(study)], [turned]).inputs_of(member).tensors
    partner = [UNITS["level_side"].index(unit.mirrored()) for unit in UNITS["level_side"]]
    expected = shown[partner] if request_.mirror_right else shown[partner].flip(-1)
    assert shown.std() > 0 and torch.equal(opposite, expected)


def test_a_mirrored_request_lies_on_the_other_side_alike():
    request = recess(outward_mm=11.3).model_copy(update={"of_side": "left"})
    other = request.mirrored()
    assert other.of_side == "right" and other.crop_offset == request.crop_offset
    assert request.shift_mm(Unit("l3_l4")) == (11.3, 0) and other.shift_mm(Unit("l3_l4")) == (-11.3, 0)


def test_changed_crops_of_training_keep_the_offset(foreign_study):
    study, landmarks = foreign_study
    view = cut(study, recess(outward_mm=12), Unit("l3_l4", "left"), landmarks)
    changed = UNCHANGED.of(view)
    np.testing.assert_allclose(middle_mm(changed), middle_mm(view), atol=1e-6)
    assert np.abs(changed.pixels.astype(int) - view.pixels).max() <= 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"crop_offset": {"outward_mm": 101}}, "less than or equal to 100"),
        ({"crop_offset": {"left_mm": 1}}, "Extra inputs are not permitted"),
        ({"crop_offset": {"up_mm": 1}}, "crop_offset.up_mm is across axial slices: it is for sagittal views"),
        ({"series": "sagittal_t1", "crop_offset": {"outward_mm": 1}}, "crop_offset.outward_mm is across sagittal"),
        ({"centre": [], "slices": {"by": "middle", "count": 3}}, "this view has no centre: name some"),
    ],
)
def test_offsets_that_lie_nowhere_are_refused(changes, sentence):
    with pytest.raises(ValidationError, match=sentence):
        ViewRequest.model_validate(recess(outward_mm=1).model_dump() | changes)


def test_outward_of_the_midline_is_refused():
    centre = ("left_subarticular_stenosis", "right_subarticular_stenosis")
    request = recess(outward_mm=1).model_copy(update={"centre": centre})
    with pytest.raises(ValidationError, match="outward_mm needs a side, from the unit or from the view's centre"):
        Member(name="one", role="grader", unit="level", inputs=(request,), targets=("spinal_canal_stenosis",))


def test_a_view_without_an_offset_is_written_as_before_there_was_one():
    plain = ViewRequest(series="sagittal_t2", slices=SliceChoice(by="middle", count=3), size_px=64)
    assert "crop_offset" not in plain.model_dump(mode="json") and "crop_offset" not in plain.model_dump_json()
    off = recess(outward_mm=1)
    assert ViewRequest.model_validate_json(off.model_dump_json()) == off
