"""The manifest of a released ensemble: its files with checksums, and how their answers are combined."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from .labels import ROWS, SERIES_KINDS
from .specs import Group, Member, SeriesKind, Spec

MANIFEST_FORMAT: Final = "lumbar-kit-manifest"
MANIFEST_FORMAT_VERSION: Final = 1


Factor = Annotated[float, Field(gt=0, le=100)]
Temperature = Annotated[float, Field(ge=0.1, le=10)]


class Weights(Spec):
    """Location and checksum of a member's TorchScript bytes, and the golden output that verifies the network."""

    file: str
    offset: int = Field(default=0, ge=0)
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    golden_seed: int
    """Seed of the golden input (see weights.golden_inputs)."""
    golden_output: tuple[float, ...]
    """The flattened float32 answer to the golden input on the exporting machine."""


class PublishedWeights(Spec):
    """Weights that training started from: published ones, or another training's (START=)."""

    model: str
    source: str
    """Repository of the hub, address, package of PyPI, file below PRETRAINED_DIR, or START= and its folder."""
    sha256: str
    licence: str


class Provenance(Spec):
    """How a member was trained, and what it costs."""

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
    """Empty where training started from random weights, or in manifests without this field."""
    resolved_recipe: dict[str, Any] = {}


class Calibration(Spec):
    """From a localiser's confidence to the probability that its point is right.

    P(within 5 mm) = sigmoid(slope * logit(confidence) + offset)    (Platt scaling)
    """

    slope: float = Field(ge=0)
    offset: float


class Artefact(Spec):
    """One TorchScript file and its metadata."""

    member: Member
    weights: Weights
    provenance: Provenance
    calibration: Calibration | None = None
    """Of a localiser: fitted out of fold."""


class GraderWeight(Spec):
    """A grader's weight in a route, by condition group (0 = not used)."""

    name: str
    weight: dict[Group, Annotated[float, Field(ge=0, le=100)]]


class Reliability(Spec):
    """From a landmark's merged confidence to the probability that it is right, fitted out of fold.

    P = sigmoid(logit(confidence) + imputed * share + offset), where `share` is that of landmarks imputed by the shape
    model in the study, of all conditions of which any was found.
    """

    imputed: float = Field(le=0)
    offset: float


class Route(Spec):
    """A set of localisers, merged in mm, and a set of graders whose views are cut at their landmarks."""

    name: str
    weight: float = Field(default=1.0, gt=0, le=100)
    localisers: tuple[str, ...]
    graders: tuple[GraderWeight, ...]
    reliability: Reliability | None = None
    """For landmarks.csv alone: no answer depends on it.  None: the merged confidence stays."""


class Spread(Spec):
    """Mean and standard deviation of a number between studies."""

    studies: int = Field(ge=2)
    mean: float
    sd: float = Field(ge=0)


class Domain(Spec):
    """What training studies were like when the kernel saw them out of fold: images unlike these are named."""

    images: dict[SeriesKind, dict[str, Spread]] = {}
    """Series kind → a number of image_statistics.FEATURES → its spread."""
    confidence: dict[str, Spread] = {}
    """Localiser → spread of its mean calibrated confidence in a study."""


STACK_CENTRES = tuple(f"centre_{kind}" for kind in SERIES_KINDS.values())
SHAPE_POINTS = (*ROWS, *STACK_CENTRES)
# Deviation in `rest_mm` of a landmark that no training study had.
UNKNOWN_MM = 1e4


class Shape(Spec):
    """Mean and variation of D = 3 × 28 coordinates: SHAPE_POINTS by x, y, z, in patient mm."""

    mean_mm: tuple[float, ...]
    modes_mm: tuple[tuple[float, ...], ...]
    """Each (D,): one standard deviation along a principal direction."""
    rest_mm: tuple[float, ...]
    """(D,) standard deviation beyond the modes; 10,000 of a landmark that no training study had."""

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
    """Row name → probabilities of a study without any answer."""
    multipliers: dict[Group, tuple[Factor, Factor, Factor]] = {}
    """Condition group → factors of the averaged probabilities of the three severities: for graders that were trained
    without the metric's weights."""
    temperatures: dict[Group, Temperature] = {}
    """Condition group → what the logits of the averaged probabilities are divided by, before the multipliers: for
    graders that are too confident (above 1) or too cautious (below 1).  Manifests without this field: 1."""
    domain: Domain | None = None
    """None in manifests without this field, and where too few studies were seen."""
    shape: Shape | None = None
    """Shape model of the landmarks; None where too few studies were annotated to fit one."""
    artefacts: tuple[Artefact, ...]
    routes: tuple[Route, ...]
    order: tuple[str, ...] = ()
    """Graders by out-of-fold gain per second, largest first; empty: the kernel orders them by weights and GFLOPs."""

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
