"""Recipes: one YAML a system, typed; defaults live here and a recipe lists differences only.

A recipe describes the full system (the published hyper-parameters) and, under `profiles`, what a smaller profile
changes of it.  `load_recipe(path, profile)` merges, checks and returns it; `Recipe.members()` lists what is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from kernels.lumbar.specs import Group, Member, SeriesKind, Spec, UnitKind, ViewRequest

Profile = Literal["smoke", "bench", "full"]


class RecipeError(Exception):
    """A recipe that cannot be used, with the file, the dotted path and the reason."""


class Network(Spec):
    """An architecture of training/networks by its file name, and its options."""

    name: str
    options: dict[str, Any] = {}


class Optimisation(Spec):
    """How the weights are fitted.  AdamW throughout, as in all five systems."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """cosine: to zero over all steps; step: multiplied by step_factor every step_epochs."""
    step_epochs: int = Field(default=2, ge=1)
    step_factor: float = Field(default=0.1, gt=0, le=1)
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps in which the rate rises linearly from zero."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    keep: Literal["best", "last"] = "best"
    """Which epoch's weights are exported: that of the best validation loss, or the last."""


class Augmentation(Spec):
    """Random changes of training inputs, made before standardising, on the device, a batch at a time."""

    rotate_deg: float = Field(default=0.0, ge=0, le=180)
    shear_deg: float = Field(default=0.0, ge=0, lt=60)
    scale: float = Field(default=0.0, ge=0, lt=1)
    """Largest relative change of size."""
    sharpen_or_blur: float = Field(default=0.0, ge=0, le=1)
    """Probability that an image is sharpened or motion-blurred (one of the two, evenly)."""
    slice_shuffle: float = Field(default=0.0, ge=0, le=1)
    """Probability that the slices of a view are put in random order."""
    slice_shuffle_series: tuple[SeriesKind, ...] = ("sagittal_t1", "sagittal_t2", "axial_t2")
    brightness: float = Field(default=0.0, ge=0, lt=1)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0, lt=1)
    """Standard deviation of added noise, as a share of the full grey scale."""
    mirror: float = Field(default=0.0, ge=0, le=1)
    """Probability that a sample is shown mirrored, with left and right exchanged."""
    jitter_mm: float | Literal["localiser"] = 0.0
    """Standard deviation, each axis, of the crop centre; `localiser`: what the fold's localiser misses by."""
    slice_jitter: int = Field(default=0, ge=0, le=4)
    """Largest shift of the slice window, in slices."""


class Pretraining(Spec):
    """A first fit, on published images of single slices (training/data/external.py), where there are any."""

    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    sources: tuple[Literal["lsd", "osf", "spider", "tseg"], ...] = ("lsd", "osf", "spider", "tseg")
    """Sagittal T2 (lsd, spider), T1 (osf) and CT (tseg)."""


class Fitting(Spec):
    """Everything between a member's inputs and its weights."""

    network: Network
    loss: Literal[
        "heatmap_mse",
        "heatmap_correlation",
        "coordinate_smooth_l1",
        "heat_and_pointer_bce",
        "level_distance",
        "level_classes",
        "weighted_cross_entropy",
    ]
    loss_options: dict[str, float] = {}
    """What the loss of that name takes beyond the batch."""
    optimisation: Optimisation
    pretraining: Pretraining | None = None
    augmentation: Augmentation = Augmentation()
    sigma_px: float = Field(default=10.0, gt=0)
    """Localisers: standard deviation of the target heatmap, in input pixels."""
    foreground: float = Field(default=0.0, ge=0)
    """Localisers: a pixel of the squared error weighs 1 + foreground × its target; 0 is the published loss."""


class Localiser(Spec):
    """A stage-1 network: finds landmarks."""

    unit: UnitKind
    inputs: tuple[ViewRequest, ...]
    targets: tuple[str, ...]
    answers: Literal["points", "slices"] = "points"
    tta: tuple[Literal["mirror"], ...] = ()
    packed_folds: tuple[int, ...] | None = None
    """Folds whose networks are shipped; None = all.  All are trained: each locates what its own fold held out."""
    fitting: Fitting


class Backbone(Spec):
    """An encoder that graders are trained with, and what it needs."""

    timm: str
    size_px: int = Field(ge=16, le=1024)
    learning_rate: float = Field(gt=0)
    pretrained: bool = True
    options: dict[str, Any] = {}


class Grader(Spec):
    """A stage-2 network: grades crops.  Trained once with each backbone, which sets size_px and learning rate."""

    unit: UnitKind
    inputs: tuple[ViewRequest, ...]
    targets: tuple[str, ...]
    tta: tuple[Literal["mirror"], ...] = ()
    weight: dict[Group, Annotated[float, Field(ge=0, le=100)]]
    """The grader's weight in the ensemble, by condition group."""
    fitting: Fitting


class MemberRecipe(Spec):
    """One network of a recipe: what the kernel must know of it, and how it is fitted."""

    member: Member
    backbone: Backbone | None = None
    weight: dict[Group, float] = {}
    fitting: Fitting


class Recipe(Spec):
    """A system."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    source: str
    profile: Profile = "full"
    folds: int = Field(default=5, ge=2, le=20)
    train_folds: tuple[int, ...] | None = None
    """Folds trained by default; None = all."""
    seed: int = 42
    average: Literal["logits", "probabilities"] = "logits"
    localisers: dict[str, Localiser]
    backbones: dict[str, Backbone]
    graders: dict[str, Grader]

    @model_validator(mode="after")
    def _members_are_valid(self) -> Recipe:
        self.members()
        return self

    def packed_folds(self, member: str) -> tuple[int, ...] | None:
        """The folds whose network of this name is shipped; None = all."""
        localiser = self.localisers.get(member.removeprefix(f"{self.name}_"))
        return None if localiser is None else localiser.packed_folds

    def members(self) -> tuple[MemberRecipe, ...]:
        """All networks of the recipe: localisers first, in their order, then every grader with every backbone."""
        found = [
            MemberRecipe(member=_member(f"{self.name}_{name}", "localiser", spec), fitting=spec.fitting)
            for name, spec in self.localisers.items()
        ]
        for grader_name, grader in self.graders.items():
            for backbone_name, backbone in self.backbones.items():
                inputs = tuple(view.model_copy(update={"size_px": backbone.size_px}) for view in grader.inputs)
                sized = grader.model_copy(update={"inputs": inputs})
                rate = {"learning_rate": backbone.learning_rate}
                optimisation = grader.fitting.optimisation.model_copy(update=rate)
                fitting = grader.fitting.model_copy(update={"optimisation": optimisation})
                member = _member(f"{self.name}_{grader_name}_{backbone_name}", "grader", sized)
                found.append(MemberRecipe(member=member, backbone=backbone, weight=grader.weight, fitting=fitting))
        return tuple(found)


def _member(name: str, role: Literal["localiser", "grader"], spec: Localiser | Grader) -> Member:
    answers = spec.answers if isinstance(spec, Localiser) else "points"
    return Member(
        name=name, role=role, unit=spec.unit, inputs=spec.inputs, targets=spec.targets, answers=answers, tta=spec.tta
    )


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` with nested `changes`; a change to null removes the key."""
    merged = dict(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def load_recipe(path: Path, profile: Profile = "full") -> Recipe:
    """Read a recipe in one of its profiles.  Raises RecipeError with the dotted path of what is wrong."""
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: a recipe is a YAML mapping")
    profiles = document.pop("profiles", None) or {}
    if profile != "full" and profile not in profiles:
        raise RecipeError(f"{path}: has no profile '{profile}'; it has: full, {', '.join(profiles)}")
    resolved = merge(document, profiles.get(profile) or {})
    resolved["profile"] = profile
    try:
        return Recipe.model_validate(resolved)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{path}: {where}: {first['msg']} ({error.error_count()} problem(s) in all)") from error
