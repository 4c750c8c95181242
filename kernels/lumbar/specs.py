"""Typed, frozen specifications of the networks' inputs and answers, shared by training and kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from .labels import LEVELS, UNITS, Unit, group_of, mirrored, row_of

SeriesKind = Literal["sagittal_t1", "sagittal_t2", "axial_t2"]
UnitKind = Literal["study", "side", "level", "level_side"]
Group = Literal["spinal", "foraminal", "subarticular"]
Level = Literal["l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1"]
Side = Literal["left", "right"]
Tta = Literal["mirror", "front_to_back"]


def _sorted(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(names))


# A set of landmarks, of which the mean is used: sorted, so that equal sets are equal specifications.
MeanOf = Annotated[tuple[str, ...], AfterValidator(_sorted)]


class Spec(BaseModel):
    """Base of all specifications: immutable, and an unknown key is an error with its dotted path."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GrownSpec(Spec):
    """A specification with later keys, of which those that say nothing are not written.

    Digests of finished trainings are made of what is written, so a key more must not change that of a training that
    has nothing to do with it.
    """

    LATER: ClassVar[tuple[str, ...]] = ()
    """Keys that are written only where they differ from their default."""

    @model_serializer(mode="wrap")
    def _as_before_these_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        for key in self.LATER:
            if getattr(self, key) == type(self).model_fields[key].default:
                dumped.pop(key, None)
        return dumped


class SliceChoice(GrownSpec):
    """Which consecutive slices of a stack a view takes."""

    LATER = ("within_mm",)

    by: Literal["middle", "offset", "landmark", "all"]
    """middle: around the middle of the stack; offset: around a plane at `offset_mm` from it, to the unit's side;
    landmark: around the plane nearest to the mean of `near`; all: the whole stack, as `fit` and `stacks` say."""
    count: int = Field(ge=1, le=192)
    offset_mm: float | dict[str, float] | None = None
    """Unsigned distance from the middle of the stack, one number or one per level (signed by side: left is +)."""
    near: MeanOf = ()
    """Landmarks (named relative to the unit) whose mean chooses the plane; empty = those of the view's centre."""
    max_distance_mm: float | None = Field(default=None, gt=0)
    """A nearest plane farther away than this means that the view is missing."""
    within_mm: float | None = Field(default=None, gt=0)
    """By landmark: only slices whose plane is this near to the one that was wanted, at least the nearest; those of
    `count` that are farther, or that the stack lacks, are blank.  None = edge slices are repeated."""
    fit: Literal["resample", "pad"] = "resample"
    """How all slices become `count`: interpolated evenly from the first to the last; or as they are, with blank slices
    at the end (of more than `count`, evenly chosen ones)."""
    stacks: Literal["longest", "together"] = "longest"
    """All slices of the longest stack of the series kind; or of all its stacks, one after the other."""

    @model_validator(mode="after")
    def _options_match_by(self) -> SliceChoice:
        if (self.by == "offset") != (self.offset_mm is not None):
            raise ValueError("offset_mm goes with slices by offset, and only with them")
        if self.by != "all" and (self.fit, self.stacks) != ("resample", "longest"):
            raise ValueError("fit and stacks go with all slices, and only with them")
        if self.by == "all" and (self.near or self.max_distance_mm):
            raise ValueError("near and max_distance_mm choose slices, and all slices are taken")
        if self.within_mm and self.by != "landmark":
            raise ValueError("within_mm goes with slices by landmark, and only with them")
        if self.stacks == "together" and self.fit != "pad":
            raise ValueError("slices of several stacks are padded, not resampled: between two stacks lies no image")
        return self

    @property
    def has_blanks(self) -> bool:
        """Whether some slices of a view may be blank."""
        return self.fit == "pad" or self.within_mm is not None

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # offsets by level are a dict


class CropOffset(Spec):
    """Where the centre of an asymmetric crop lies from its landmarks, in mm within the plane of its slices.

    By the patient and not by the image, so that a mirrored study is shown its mirror image.  Source: the 1st place's
    crops, which show more of one side of a landmark than of the other.
    """

    outward_mm: float = Field(default=0.0, ge=-100, le=100)
    """Axial views of one side: away from the midline."""
    front_mm: float = Field(default=0.0, ge=-100, le=100)
    """To the front of the patient."""
    up_mm: float = Field(default=0.0, ge=-100, le=100)
    """Sagittal views: to the head."""


class ViewRequest(GrownSpec):
    """One input of a network: series, centre, slices, size in mm and pixels, normalisation."""

    LATER = ("crop_offset",)

    series: SeriesKind
    centre: MeanOf = ()
    """Landmarks (named relative to the unit) whose mean is the centre of the crop; empty = the whole image."""
    slices: SliceChoice
    size_mm: float | None = Field(default=None, gt=0)
    """Side of the square field of view; None (whole images only) = the longer side of the image."""
    size_px: int = Field(ge=16, le=1024)
    of_level: Level | None = None
    """The level that the view is of, where the unit holds several."""
    of_side: Side | None = None
    """The side that the view is of, where the unit holds both."""
    normalisation: Literal["unit", "zscore"] = "zscore"
    mirror_right: bool = False
    """Present right-sided views as left ones: axial images flipped, sagittal stacks in reversed order."""
    marks: MeanOf = ()
    """Landmarks to draw instead of the image, as Gaussian balls whose grey encodes the landmark: landmarks of one
    series as an input beside images of another.  The view is missing where none of them is known."""
    crop_offset: CropOffset | None = None
    """Of an asymmetric crop; None = its landmarks are its centre."""

    @model_validator(mode="after")
    def _padding_is_at_the_end(self) -> ViewRequest:
        if self.slices.fit == "pad":
            if self.normalisation != "unit":
                raise ValueError("blank slices are known by being zero: padding needs normalisation unit")
            if self.mirror_right:
                raise ValueError("padded slices cannot be presented in reversed order (mirror_right)")
        if self.slices.within_mm and (self.normalisation != "unit" or self.marks):
            raise ValueError("blank slices are known by being zero: within_mm needs normalisation unit, and no marks")
        return self

    @model_validator(mode="after")
    def _marks_are_drawn_alike(self) -> ViewRequest:
        if self.marks and self.normalisation != "unit":
            raise ValueError("marks are drawn in fixed greys: normalisation is unit")
        if any(name.startswith(("left_", "right_")) or not name.endswith(LEVELS) for name in self.marks):
            raise ValueError("marks are landmarks of the midline with their level: a mirrored study shows them alike")
        return self

    @model_validator(mode="after")
    def _size_known(self) -> ViewRequest:
        if self.centre and self.size_mm is None:
            raise ValueError("a view around landmarks needs size_mm")
        if self.slices.by == "landmark" and not (self.slices.near or self.centre):
            raise ValueError("slices by landmark need a centre, or landmarks they are near to")
        return self

    @model_validator(mode="after")
    def _offset_lies_in_the_slices(self) -> ViewRequest:
        offset = self.crop_offset
        if offset is not None and not self.centre:
            raise ValueError("crop_offset is from landmarks, and this view has no centre: name some")
        if offset is not None and offset.outward_mm and self.series != "axial_t2":
            raise ValueError("crop_offset.outward_mm is across sagittal slices: it is for axial views")
        if offset is not None and offset.up_mm and self.series == "axial_t2":
            raise ValueError("crop_offset.up_mm is across axial slices: it is for sagittal views")
        return self

    def shift_mm(self, unit: Unit) -> tuple[float, float]:
        """How far right of its landmarks and below them a crop's centre lies, in canonical slices of a unit."""
        if self.crop_offset is None:
            return 0.0, 0.0
        outward_mm, front_mm, up_mm = self.crop_offset.outward_mm, self.crop_offset.front_mm, self.crop_offset.up_mm
        if self.series != "axial_t2":
            return -front_mm, -up_mm
        return (-outward_mm if self.side(unit) == "right" else outward_mm), -front_mm

    def landmarks(self, unit: Unit) -> tuple[str, ...]:
        """Row names of all landmarks this view needs at a unit."""
        names = dict.fromkeys((*self.centre, *self.slices.near, *self.marks))
        return tuple(row_of(name, self.place(unit)) for name in names)

    def place(self, unit: Unit) -> Unit:
        """The level and side that the view is of, at a unit: names of landmarks are relative to it."""
        return Unit(self.of_level or unit.level, self.of_side or unit.side)

    @property
    def anywhere(self) -> ViewRequest:
        """The same request without a level and a side of its own."""
        return self.model_copy(update={"of_level": None, "of_side": None})

    def side(self, unit: Unit) -> str | None:
        """'left' or 'right' where the view lies on one side of the body, else None."""
        if (side := self.place(unit).side) is not None:
            return side
        sides = {name.split("_")[0] for name in self.centre} & {"left", "right"}
        return sides.pop() if len(sides) == 1 else None

    def mirrored(self) -> ViewRequest:
        """The request that shows, in a mirrored study, what this one shows in the study."""
        near = _sorted(tuple(mirrored(name) for name in self.slices.near))
        centre = _sorted(tuple(mirrored(name) for name in self.centre))
        slices = self.slices.model_copy(update={"near": near})
        return self.model_copy(
            update={"centre": centre, "slices": slices, "of_side": Unit(side=self.of_side).mirrored().side}
        )


class Member(Spec):
    """Inputs and outputs of a network.

    A localiser answers points (B, K, 4) = slice, row, column in pixels of its first view, and a confidence in [0, 1];
    a grader answers logits (B, K, 3).  K = number of `targets`, named relative to the unit.
    Both are called with one (B, slices, size_px, size_px) tensor per view and `present` (B, views) of 0 and 1.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    role: Literal["localiser", "grader"]
    unit: UnitKind
    inputs: tuple[ViewRequest, ...] = Field(min_length=1)
    targets: tuple[str, ...] = Field(min_length=1)
    answers: Literal["points", "slices"] = "points"
    """Of a localiser.  slices = only the slice of a landmark is meant; others, starting there, predict the point."""
    tta: tuple[Tta, ...] = ()
    """Test-time augmentations: mirror = also answer for the mirrored study and exchange left and right back;
    front_to_back (graders) = also answer for all views with front and back exchanged."""

    @property
    def passes(self) -> int:
        """Forward passes per study with all test-time augmentations."""
        return 1 + len(self.tta)

    @property
    def answered(self) -> list[str]:
        """The rows that it predicts."""
        return [row_of(target, unit) for unit in UNITS[self.unit] for target in self.targets]

    @property
    def needed(self) -> set[str]:
        """The rows whose landmarks its views start from."""
        return {row for unit in UNITS[self.unit] for request in self.inputs for row in request.landmarks(unit)}

    @property
    def groups(self) -> tuple[Group, ...]:
        """The condition groups of its targets."""
        found = {group_of(row) for row in self.answered}
        return tuple(group for group in get_args(Group) if group in found)

    @model_validator(mode="after")
    def _names_exist(self) -> Member:
        for unit in UNITS[self.unit]:
            for target in self.targets:
                row_of(target, unit)
            for request in self.inputs:
                request.landmarks(unit)
                of = (("of_level", request.of_level, unit.level), ("of_side", request.of_side, unit.side))
                for key, own, units in of:
                    if own and units:
                        raise ValueError(f"{key} is for units that hold several, and a {self.unit} unit does not")
                if request.crop_offset and request.crop_offset.outward_mm and request.side(unit) is None:
                    raise ValueError("crop_offset.outward_mm needs a side, from the unit or from the view's centre")
                offset = request.slices.offset_mm
                if offset is not None and request.side(unit) is None:
                    raise ValueError("slices by offset need a side, from the unit or from the view's centre")
                if isinstance(offset, dict) and request.place(unit).level not in offset:
                    raise ValueError(f"offset_mm names no offset for level {unit.level}")
        return self

    @model_validator(mode="after")
    def _localisers_keep_front_and_back(self) -> Member:
        if self.role == "localiser" and "front_to_back" in self.tta:
            raise ValueError("front_to_back is for graders: nothing turns a localiser's points back")
        return self

    @model_validator(mode="after")
    def _points_lie_in_whole_windows(self) -> Member:
        if self.role == "localiser" and any(request.slices.within_mm for request in self.inputs):
            raise ValueError("within_mm is for graders: a localiser's points are counted from its first slice")
        return self

    @model_validator(mode="after")
    def _mirror_has_partners(self) -> Member:
        if "mirror" not in self.tta:
            return self
        if self.unit in ("side", "level_side"):
            raise ValueError("mirror TTA is for units that hold both sides; sided views are mirrored by mirror_right")
        for request in self.inputs:
            if request.series != "axial_t2" and request.slices.fit == "pad":
                raise ValueError("mirror TTA needs sagittal slices that are resampled: padding has one end")
            if request.mirrored() not in self.inputs:
                where = f"{request.series} view at {request.centre}"
                raise ValueError(f"mirror TTA needs the mirrored partner of the {where}")
        if {mirrored(t) for t in self.targets} != set(self.targets):
            raise ValueError("mirror TTA needs targets on both sides or on none")
        first = self.inputs[0]
        if self.role == "localiser" and first.side(UNITS[self.unit][0]) is not None:
            raise ValueError("a localiser with mirror TTA answers in a first view that holds both sides")
        return self


class HasMember(Protocol):
    """A member with what belongs to it: its loaded network, or its recipe."""

    @property
    def member(self) -> Member:
        """Its specification."""
        ...


Entry = TypeVar("Entry", bound=HasMember)


def waves(localisers: Sequence[Entry]) -> Iterator[list[Entry]]:
    """The localisers in the order in which they can run: first those whose input landmarks no other one predicts, then
    those that need only landmarks of these, and so on; all that are left if they depend on each other.

    A localiser that starts from the landmark that it predicts refines it: no other one depends on that.
    """
    waiting = list(localisers)
    while waiting:
        needs = {one.member.name: one.member.needed for one in waiting}
        pending = {row for one in waiting for row in one.member.answered if row not in needs[one.member.name]}
        wave = [one for one in waiting if not pending & needs[one.member.name]] or waiting
        names = {one.member.name for one in wave}
        waiting = [one for one in waiting if one.member.name not in names]
        yield wave
