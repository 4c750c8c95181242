"""The manifest of a released ensemble: its files with checksums, and how their answers are combined."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from .labels import LEVELS, ROWS, SERIES_KINDS, SEVERITIES
from .specs import Group, GrownSpec, Member, SeriesKind, Spec

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


class LocaliserError(Spec):
    """Out-of-fold error of the landmarks of one series: what a grader's crops were jittered by in training."""

    count: int
    median_mm: float
    """Within the slices."""
    sigma_mm: float
    """Standard deviation of each axis within the slices, from the median."""
    across_mm: tuple[float, ...]
    """Quantiles from 0 to 100 % in even steps of the signed error across the slices, that of right sides mirrored."""


class Provenance(GrownSpec):
    """How a member was trained, and what it costs."""

    LATER = ("localiser_errors",)

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
    localiser_errors: dict[SeriesKind, LocaliserError] = {}
    """Of graders whose training drew its jitter from the measured errors of the localisers."""


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
    """A grader's weight in a route, by condition group (0 = no part in the mixture)."""

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


# What a stacker sees of a row beside its networks: 7 mixed rows, two log-ratios each, and which level it is.
STACKER_CONTEXT = 2 * 7 + len(LEVELS)
# Deepest tree that the kernel descends.
DEEPEST = 16
Number = Annotated[float, Field(ge=-1e9, le=1e9)]


class Layer(Spec):
    """A linear layer; rectified, unless it is the last."""

    weights: tuple[tuple[Number, ...], ...] = Field(min_length=1)
    """(outputs, inputs)"""
    bias: tuple[Number, ...]

    @model_validator(mode="after")
    def _rectangular(self) -> Layer:
        if len(self.bias) != len(self.weights) or len({len(row) for row in self.weights}) != 1:
            raise ValueError("weights are rows of one length, as many as there are biases")
        return self


class Trees(Spec):
    """Regression trees of one level as lists of nodes; what their leaves add to the logits of the severities."""

    start: tuple[Number, Number, Number]
    roots: tuple[int, ...]
    """First node of each tree; tree t is of severity t % 3."""
    feature: tuple[int, ...]
    """What a node splits by; -1 = a leaf."""
    number: tuple[Number, ...]
    """Threshold, up to which a row goes left; the value of a leaf."""
    left: tuple[int, ...]
    right: tuple[int, ...]

    @model_validator(mode="after")
    def _every_way_ends(self) -> Trees:
        nodes = len(self.feature)
        if {len(self.number), len(self.left), len(self.right)} != {nodes}:
            raise ValueError("feature, number, left and right are as long as there are nodes")
        if not all(0 <= root < nodes for root in self.roots):
            raise ValueError("roots are nodes")
        # Children come after their parent, so depths follow in order.
        depth = [0] * nodes
        for node, (feature, *children) in enumerate(zip(self.feature, self.left, self.right, strict=True)):
            for child in children if feature >= 0 else ():
                if not node < child < nodes:
                    raise ValueError(f"the children of node {node} come after it")
                depth[child] = max(depth[child], depth[node] + 1)
        if max(depth, default=0) > DEEPEST:
            raise ValueError(f"a tree is deeper than {DEEPEST}")
        return self


class StackedGroup(Spec):
    """A stacker's model of one condition group: logits = keep · log(mixture) + what layers or trees answer."""

    models: tuple[tuple[str, ...], ...] = Field(min_length=1)
    """Inputs in order, each the mean over graders (the folds of a model) of their logits."""
    keep: float = Field(ge=0, le=1)
    layers: tuple[Layer, ...] = ()
    trees: tuple[Trees, ...] = ()
    """One for each level."""

    @model_validator(mode="after")
    def _sizes_match(self) -> StackedGroup:
        size = 2 * len(self.models) + STACKER_CONTEXT
        if bool(self.layers) == bool(self.trees):
            raise ValueError("a stacker has layers or trees")
        if self.trees and len(self.trees) != len(LEVELS):
            raise ValueError(f"trees are of {len(LEVELS)} levels")
        if any(max(one.feature, default=-1) >= size for one in self.trees):
            raise ValueError(f"trees split by {size} features")
        for layer in self.layers:
            if len(layer.weights[0]) != size:
                raise ValueError(f"a layer has {len(layer.weights[0])} inputs where {size} come in")
            size = len(layer.bias)
        if self.layers and size != len(SEVERITIES):
            raise ValueError("the last layer answers the three severities")
        return self


class Stacker(Spec):
    """Correction of the averaged probabilities by a model fitted to out-of-fold answers (answers/stack.py).

    It sees one side at a time, the other exchanged with it.  A row that not all `models` answer keeps the mixture.
    """

    kind: Literal["mlp", "trees"]
    groups: dict[Group, StackedGroup] = Field(min_length=1)
    """A group that is not named keeps the mixture."""

    @property
    def graders(self) -> list[str]:
        """All that its groups need."""
        return [name for group in self.groups.values() for model in group.models for name in model]


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
    stacker: Stacker | None = None
    """Applied to the averaged and rescaled probabilities; None, as in manifests without this field: they stay."""
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

    @model_validator(mode="after")
    def _stacker_is_of_its_graders(self) -> Manifest:
        graders = {artefact.member.name for artefact in self.artefacts if artefact.member.role == "grader"}
        for name in self.stacker.graders if self.stacker else ():
            if name not in graders:
                raise ValueError(f"the stacker names '{name}', which is no grader of this manifest")
        return self
