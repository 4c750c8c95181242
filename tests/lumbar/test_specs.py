"""What specifications refuse: winners' hand-edited configurations went wrong in just these ways."""

import pytest
from pydantic import ValidationError

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.labels import UNITS, Unit
from kernels.lumbar.manifest import GraderWeight, Manifest, Route
from kernels.lumbar.specs import Member, SliceChoice, ViewRequest


def view(**changes: object) -> ViewRequest:
    content = {"series": "axial_t2", "slices": {"by": "landmark", "count": 5}, "size_px": 64, "size_mm": 50}
    return ViewRequest.model_validate(content | {"centre": ["left_subarticular_stenosis"]} | changes)


def test_a_typo_is_refused_with_its_path() -> None:
    with pytest.raises(ValidationError, match="slices.cuont"):
        view(slices={"by": "landmark", "cuont": 5})


def test_offsets_go_with_slices_by_offset_only() -> None:
    with pytest.raises(ValidationError, match="offset_mm"):
        SliceChoice(by="middle", count=3, offset_mm=16.8)
    with pytest.raises(ValidationError, match="offset_mm"):
        SliceChoice(by="offset", count=3)


def test_slices_near_nothing_or_at_no_offset_are_refused() -> None:
    with pytest.raises(ValidationError, match="near to"):
        view(centre=[], size_mm=None)
    sided = {"name": "m", "role": "grader", "unit": "level", "targets": ["left_subarticular_stenosis"]}
    partial = view(slices={"by": "offset", "count": 3, "offset_mm": {"l1_l2": 15.0}})
    with pytest.raises(ValidationError, match="no offset for level l2_l3"):
        Member.model_validate(sided | {"inputs": [partial]})
    midline = view(centre=["spinal_canal_stenosis"], slices={"by": "offset", "count": 3, "offset_mm": 15.0})
    with pytest.raises(ValidationError, match="need a side"):
        Member.model_validate(sided | {"inputs": [midline]})


def test_crops_need_a_size_in_mm() -> None:
    with pytest.raises(ValidationError, match="size_mm"):
        view(size_mm=None)


def test_a_weight_out_of_range_is_refused() -> None:
    """The 7th place's final ensemble had the weight and the number of slices of one model exchanged."""
    with pytest.raises(ValidationError):
        GraderWeight(name="a", weight={"spinal": -0.1})
    with pytest.raises(ValidationError):
        SliceChoice.model_validate({"by": "middle", "count": 0.0987})


def test_sides_and_landmarks_of_a_view() -> None:
    left, unit = view(), Unit(level="l4_l5")
    assert left.side(unit) == "left"
    assert left.mirrored().side(unit) == "right"
    assert left.mirrored().mirrored() == left
    assert left.landmarks(unit) == ("left_subarticular_stenosis_l4_l5",)
    both = view(centre=["right_subarticular_stenosis", "left_subarticular_stenosis"])
    assert both.side(unit) is None
    assert both.mirrored() == both


def test_mirror_tta_needs_partners_and_both_sides() -> None:
    member = {"name": "m", "role": "grader", "unit": "level", "inputs": [view()], "tta": ["mirror"]}
    with pytest.raises(ValidationError, match="partner"):
        Member.model_validate(member | {"targets": ["left_subarticular_stenosis"]})
    both = {"inputs": [view(), view().mirrored()]}
    with pytest.raises(ValidationError, match="both sides"):
        Member.model_validate(member | both | {"targets": ["left_subarticular_stenosis"]})
    Member.model_validate(member | both | {"targets": ["left_subarticular_stenosis", "right_subarticular_stenosis"]})
    with pytest.raises(ValidationError, match="mirror_right"):
        sided = {"unit": "level_side", "inputs": [view(centre=["subarticular_stenosis"])]}
        Member.model_validate(member | sided | {"targets": ["subarticular_stenosis"]})


def test_targets_must_be_rows() -> None:
    with pytest.raises(ValidationError, match="none of the 25 rows"):
        Member(name="m", role="grader", unit="level", inputs=(view(),), targets=("spinal_stenosis",))
    assert len(UNITS["level"]) == 5


def test_a_manifest_is_consistent() -> None:
    empty = Manifest(name="empty", priors=public_priors(), artefacts=(), routes=())
    assert Manifest.model_validate_json(empty.model_dump_json()) == empty
    with pytest.raises(ValidationError, match="no grader of this manifest"):
        route = Route(name="r", localisers=(), graders=(GraderWeight(name="ghost", weight={"spinal": 1}),))
        Manifest(name="bad", priors=public_priors(), artefacts=(), routes=(route,))
    for wrong_temperature in (0, -1, 0.05, 11):
        with pytest.raises(ValidationError, match="temperatures.spinal"):
            Manifest(
                name="bad", priors=public_priors(), artefacts=(), routes=(), temperatures={"spinal": wrong_temperature}
            )
    wrong = public_priors() | {"spinal_canal_stenosis_l1_l2": (0.5, 0.5, 0.5)}
    with pytest.raises(ValidationError, match="sum to 1"):
        Manifest(name="bad", priors=wrong, artefacts=(), routes=())


def test_a_manifest_from_before_a_field_still_loads() -> None:
    empty = Manifest(name="empty", priors=public_priors(), artefacts=(), routes=())
    content = empty.model_dump(mode="json")
    for field in ("temperatures", "multipliers", "order", "shape"):
        del content[field]
    assert Manifest.model_validate(content) == empty and empty.temperatures == {}


def test_a_member_says_which_conditions_it_answers() -> None:
    sided = {"name": "m", "role": "grader", "unit": "level", "inputs": [view()]}
    assert Member.model_validate(sided | {"targets": ["left_subarticular_stenosis"]}).groups == ("subarticular",)
    both = ["right_neural_foraminal_narrowing", "spinal_canal_stenosis"]
    assert Member.model_validate(sided | {"targets": both}).groups == ("spinal", "foraminal")
