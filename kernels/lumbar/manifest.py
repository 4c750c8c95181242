"""The manifest of a released ensemble: its files, what proves them, and how their answers are combined."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from .labels import ROWS, SERIES_KINDS
from .specs import Group, Member, Spec

MANIFEST_FORMAT: Final = "lumbar-kit-manifest"
MANIFEST_FORMAT_VERSION: Final = 1


Factor = Annotated[float, Field(gt=0, le=100)]


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


class PublishedWeights(Spec):
    """Weights of somebody else that training started from."""

    model: str
    source: str
    """Repository of the hub, address, or file below PRETRAINED_DIR."""
    sha256: str
    licence: str


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
    published: tuple[PublishedWeights, ...] = ()
    """Empty where training started from nothing, or before this was noted."""
    resolved_recipe: dict[str, Any] = {}


class Calibration(Spec):
    """From what a localiser says of its certainty to how often such points are right.

    P(within 5 mm) = sigmoid(slope * logit(confidence) + offset)    (Platt scaling)
    """

    slope: float = Field(ge=0)
    offset: float


class Artefact(Spec):
    """One TorchScript file and all that is known of it."""

    member: Member
    weights: Weights
    provenance: Provenance
    calibration: Calibration | None = None
    """Of a localiser: fitted on studies that it never saw."""


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


STACK_CENTRES = tuple(f"centre_{kind}" for kind in SERIES_KINDS.values())
SHAPE_POINTS = (*ROWS, *STACK_CENTRES)


class Shape(Spec):
    """Mean and variation of D = 3 × 28 coordinates: SHAPE_POINTS by x, y, z, in patient mm."""

    mean_mm: tuple[float, ...]
    modes_mm: tuple[tuple[float, ...], ...]
    """Each (D,): one standard deviation along a principal direction."""
    rest_mm: tuple[float, ...]
    """(D,) standard deviation beyond the modes."""

    @model_validator(mode="after")
    def _complete(self) -> Shape:
        size = 3 * len(SHAPE_POINTS)
        if {len(self.mean_mm), len(self.rest_mm), *(len(mode) for mode in self.modes_mm)} != {size}:
            raise ValueError(f"a shape has {size} coordinates")
        if min(self.rest_mm) <= 0:
            raise ValueError("rest_mm must be positive")
        return self


class Manifest(Spec):
    """A released ensemble: its files, routes, weights and priors."""

    format: Literal["lumbar-kit-manifest"] = MANIFEST_FORMAT
    format_version: Literal[1] = MANIFEST_FORMAT_VERSION
    name: str
    average: Literal["logits", "probabilities"] = "logits"
    priors: dict[str, tuple[float, float, float]]
    """Row name → probabilities of a study about which nothing is known."""
    multipliers: dict[Group, tuple[Factor, Factor, Factor]] = {}
    """Condition group → what the averaged probabilities of the three severities are multiplied with: graders trained
    without the metric's weights answer what is likely, not what costs least."""
    shape: Shape | None = None
    """Where landmarks are to be expected, given others; None where too few studies were annotated to know."""
    artefacts: tuple[Artefact, ...]
    routes: tuple[Route, ...]
    order: tuple[str, ...] = ()
    """Graders, those first whose every second gains most out of fold; empty: the kernel goes by weights and GFLOPs."""

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
        for name in self.order:
            if roles.get(name) != "grader":
                raise ValueError(f"order names '{name}', which is no grader of this manifest")
        if set(self.priors) != set(ROWS):
            raise ValueError("priors must name the 25 rows, each once")
        for row, prior in self.priors.items():
            if min(prior) <= 0 or abs(sum(prior) - 1) > 1e-6:
                raise ValueError(f"the prior of {row} must be positive and sum to 1")
        return self
