"""Typed, frozen, extra-forbidding specifications shared by recipes, packaging and the kernel."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from .labels import GROUPS, ROWS, UNITS, Unit, mirrored, row_of

MANIFEST_FORMAT: Final = "lumbar-kit-manifest"
MANIFEST_FORMAT_VERSION: Final = 1

SeriesKind = Literal["sagittal_t1", "sagittal_t2", "axial_t2"]
UnitKind = Literal["study", "side", "level", "level_side"]
Group = Literal["spinal", "foraminal", "subarticular"]


def _sorted(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(names))


# A set of landmarks whose mean is meant: sorted, so that equal sets are equal specifications.
MeanOf = Annotated[tuple[str, ...], AfterValidator(_sorted)]


class Spec(BaseModel):
    """Base of all specifications: immutable, and an unknown key is an error with its dotted path."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SliceChoice(Spec):
    """Which consecutive slices of a stack a view takes."""

    by: Literal["middle", "offset", "landmark"]
    """middle: around the middle of the stack; offset: around a plane at `offset_mm` from it, to the unit's side;
    landmark: around the plane nearest to the mean of `near`."""
    count: int = Field(ge=1, le=64)
    offset_mm: float | dict[str, float] | None = None
    """Unsigned distance from the middle of the stack, one number or one per level (signed by side: left is +)."""
    near: MeanOf = ()
    """Landmarks (named relative to the unit) whose mean chooses the plane; empty = those of the view's centre."""
    max_distance_mm: float | None = Field(default=None, gt=0)
    """A nearest plane farther away than this means that the view is missing."""

    @model_validator(mode="after")
    def _offset_where_needed(self) -> SliceChoice:
        if (self.by == "offset") != (self.offset_mm is not None):
            raise ValueError("offset_mm goes with slices by offset, and only with them")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # offsets by level are a dict


class ViewRequest(Spec):
    """One input of a network: which series, around what, which slices, how many mm, how many pixels, how normalised."""

    series: SeriesKind
    centre: MeanOf = ()
    """Landmarks (named relative to the unit) whose mean is the centre of the crop; empty = the whole image."""
    slices: SliceChoice
    size_mm: float | None = Field(default=None, gt=0)
    """Side of the square field of view; None (whole images only) = the longer side of the image."""
    size_px: int = Field(ge=16, le=1024)
    normalisation: Literal["unit", "zscore"] = "zscore"
    mirror_right: bool = False
    """Present right-sided views as left ones: axial images flipped, sagittal stacks in reversed order."""

    @model_validator(mode="after")
    def _size_known(self) -> ViewRequest:
        if self.centre and self.size_mm is None:
            raise ValueError("a view around landmarks needs size_mm")
        if self.slices.by == "landmark" and not (self.slices.near or self.centre):
            raise ValueError("slices by landmark need a centre, or landmarks they are near to")
        return self

    def landmarks(self, unit: Unit) -> tuple[str, ...]:
        """Row names of all landmarks this view needs at a unit."""
        names = dict.fromkeys((*self.centre, *self.slices.near))
        return tuple(row_of(name, unit) for name in names)

    def side(self, unit: Unit) -> str | None:
        """'left' or 'right' where the view lies on one side of the body, else None."""
        if unit.side is not None:
            return unit.side
        sides = {name.split("_")[0] for name in self.centre} & {"left", "right"}
        return sides.pop() if len(sides) == 1 else None

    def mirrored(self) -> ViewRequest:
        """The request that shows, in a mirrored study, what this one shows in the study."""
        near = _sorted(tuple(mirrored(name) for name in self.slices.near))
        centre = _sorted(tuple(mirrored(name) for name in self.centre))
        return self.model_copy(update={"centre": centre, "slices": self.slices.model_copy(update={"near": near})})


class Member(Spec):
    """How a network is fed and what it answers.

    A localiser answers points (B, K, 4) = slice, row, column in pixels of its first view, and a confidence in [0, 1];
    a grader answers logits (B, K, 3).  K counts `targets`, named relative to the unit.
    Both are called with one (B, slices, size_px, size_px) tensor a view and `present` (B, views) of 0 and 1.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    role: Literal["localiser", "grader"]
    unit: UnitKind
    inputs: tuple[ViewRequest, ...] = Field(min_length=1)
    targets: tuple[str, ...] = Field(min_length=1)
    tta: tuple[Literal["mirror"], ...] = ()
    """Test-time augmentations: mirror = also answer for the mirrored study and exchange left and right back."""

    @model_validator(mode="after")
    def _names_exist(self) -> Member:
        for unit in UNITS[self.unit]:
            for target in self.targets:
                row_of(target, unit)
            for request in self.inputs:
                request.landmarks(unit)
                offset = request.slices.offset_mm
                if offset is not None and request.side(unit) is None:
                    raise ValueError("slices by offset need a side, from the unit or from the view's centre")
                if isinstance(offset, dict) and unit.level not in offset:
                    raise ValueError(f"offset_mm names no offset for level {unit.level}")
        return self

    @model_validator(mode="after")
    def _mirror_has_partners(self) -> Member:
        if "mirror" not in self.tta:
            return self
        if self.unit in ("side", "level_side"):
            raise ValueError("mirror TTA is for units that hold both sides; sided views are mirrored by mirror_right")
        for request in self.inputs:
            if request.mirrored() not in self.inputs:
                where = f"{request.series} view at {request.centre}"
                raise ValueError(f"mirror TTA needs the mirrored partner of the {where}")
        if {mirrored(t) for t in self.targets} != set(self.targets):
            raise ValueError("mirror TTA needs targets on both sides or on none")
        first = self.inputs[0]
        if self.role == "localiser" and first.side(UNITS[self.unit][0]) is not None:
            raise ValueError("a localiser with mirror TTA answers in a first view that holds both sides")
        return self


class Weights(Spec):
    """Where the TorchScript bytes of a member lie, and what proves that they are the right ones."""

    file: str
    offset: int = Field(default=0, ge=0)
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    golden_seed: int
    """Seed of the golden input (see weights.golden_inputs)."""
    golden_output: tuple[float, ...]
    """The flattened float32 answer to the golden input on the exporting machine."""


class Provenance(Spec):
    """What made a member, and what it costs."""

    recipe: str
    network: str
    backbone: str
    fold: int
    seed: int
    profile: str
    torch_version: str
    git_commit: str
    data_fingerprint: str
    gflops_per_study: float | None = None
    seconds_per_study: float | None = None
    oof_score: dict[str, float] = {}
    resolved_recipe: dict[str, Any] = {}


class Artefact(Spec):
    """One TorchScript file and all that is known of it."""

    member: Member
    weights: Weights
    provenance: Provenance


class GraderWeight(Spec):
    """A grader's part in a route: a weight for each condition group (0 = takes no part)."""

    name: str
    weight: dict[Group, Annotated[float, Field(ge=0, le=100)]]


class Route(Spec):
    """One set of localisers, averaged in mm, and one set of graders that look where these point."""

    name: str
    weight: float = Field(default=1.0, gt=0, le=100)
    localisers: tuple[str, ...]
    graders: tuple[GraderWeight, ...]


class Manifest(Spec):
    """A released ensemble: its files, routes, weights and priors."""

    format: Literal["lumbar-kit-manifest"] = MANIFEST_FORMAT
    format_version: Literal[1] = MANIFEST_FORMAT_VERSION
    name: str
    average: Literal["logits", "probabilities"] = "logits"
    priors: dict[str, tuple[float, float, float]]
    """Row name → probabilities of a study about which nothing is known."""
    artefacts: tuple[Artefact, ...]
    routes: tuple[Route, ...]

    @model_validator(mode="after")
    def _complete_and_consistent(self) -> Manifest:
        names = [artefact.member.name for artefact in self.artefacts]
        if len(set(names)) != len(names):
            raise ValueError("two artefacts have the same name")
        roles = {artefact.member.name: artefact.member.role for artefact in self.artefacts}
        for route in self.routes:
            named = [(name, "localiser") for name in route.localisers]
            named += [(grader.name, "grader") for grader in route.graders]
            for name, role in named:
                if roles.get(name) != role:
                    raise ValueError(f"route '{route.name}' names '{name}', which is no {role} of this manifest")
        if set(self.priors) != set(ROWS):
            raise ValueError("priors must name the 25 rows, each once")
        for row, prior in self.priors.items():
            if min(prior) <= 0 or abs(sum(prior) - 1) > 1e-6:
                raise ValueError(f"the prior of {row} must be positive and sum to 1")
        return self


EQUAL_WEIGHT: dict[Group, float] = dict.fromkeys(GROUPS, 1.0)  # type: ignore[arg-type]
