"""Schema of recipes, one YAML a system.  Defaults are here; a recipe lists differences only.

A recipe describes the full system (the published hyper-parameters) and, under `profiles`, the changes of smaller
profiles (load.py merges and checks them).  `Recipe.members()` lists the networks.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from kernels.lumbar.labels import GROUPS, UNITS
from kernels.lumbar.specs import Group, Member, Spec, Tta, UnitKind, ViewRequest
from kernels.profiles import Profile
from training.recipe_schema.fitting import Fitting
from training.recipe_schema.shorthand import expand_targets, expand_views


class RecipeError(Exception):
    """A recipe that cannot be used, with the file, the dotted path and the reason."""


Views = Annotated[tuple[ViewRequest, ...], BeforeValidator(expand_views)]


class Stage(Spec):
    """Common to localisers and graders: inputs, targets and fitting."""

    unit: UnitKind
    inputs: Views
    targets: tuple[str, ...]
    """Relative to the unit; names without a level or side that the unit lacks too stand for all of them."""
    tta: tuple[Tta, ...] = ()
    fitting: Fitting

    @field_validator("targets", mode="before")
    @classmethod
    def _all_levels_and_sides(cls, targets: Any, info: ValidationInfo) -> Any:
        return expand_targets(info.data.get("unit", ""), targets)


class Localiser(Stage):
    """A stage-1 network: locates landmarks."""

    answers: Literal["points", "slices"] = "points"
    packed_folds: tuple[int, ...] | None = None
    """Folds whose networks are packaged; None = all.  All are trained: each locates the studies its fold holds out."""


class Backbone(Spec):
    """An encoder of graders, with its input size and learning rate."""

    timm: str
    size_px: int = Field(ge=16, le=1024)
    learning_rate: float = Field(gt=0)
    pretrained: bool = True
    folds: tuple[int, ...] | None = None
    """Folds in which graders are trained with it; None = all.  Different backbones by fold form one model."""
    options: dict[str, Any] = {}


class Grader(Stage):
    """A stage-2 network: grades crops.  Trained once with each backbone, which sets size_px and learning rate."""

    backbones: tuple[str, ...] | None = None
    """Names of the backbones it is trained with; None = all."""
    weight: dict[Group, Annotated[float, Field(ge=0, le=100)]]
    """The grader's weight in the ensemble, by condition group."""

    @field_validator("weight")
    @classmethod
    def _counts_for_something(cls, weight: dict[Group, float], info: ValidationInfo) -> dict[Group, float]:
        graded = [one for one in GROUPS if any(one in target for target in info.data.get("targets", ()))]
        if graded and not any(weight.get(group, 0.0) > 0 for group in graded):  # type: ignore[call-overload]
            raise ValueError(f"is 0 for all that it grades ({', '.join(graded)}): it would be trained for nothing")
        return weight


class RouteRecipe(Spec):
    """Localisers whose landmarks are merged, and the graders that are run there."""

    localisers: tuple[str, ...] = Field(min_length=1)
    graders: tuple[str, ...] = Field(min_length=1)


class MemberRecipe(Spec):
    """One network of a recipe: its spec for the kernel, and how it is fitted."""

    member: Member
    model: str = ""
    """Graders with different backbones by fold: the name of the model that they form."""
    backbone: Backbone | None = None
    weight: dict[Group, float] = {}
    fitting: Fitting

    @model_validator(mode="after")
    def _changes_that_labels_bear(self) -> MemberRecipe:
        augmentation, is_grader = self.fitting.augmentation, self.member.role == "grader"
        for change in ("front_to_back", "dihedral", "mixup", "cutmix"):
            if getattr(augmentation, change) and not is_grader:
                raise ValueError(f"fitting.augmentation.{change}: is for graders: points would not follow")
        if augmentation.dihedral and len(self.member.targets) > 1:
            raise ValueError(
                "fitting.augmentation.dihedral: exchanges left and right, so it is for graders of one target"
            )
        if self.fitting.start is not None and is_grader:
            raise ValueError("fitting.start: is for localisers")
        whole = self.member.unit == "study" or self.fitting.optimisation.whole_studies
        second = self.fitting.second_step
        losses = {"fitting": self.fitting.loss} | ({"fitting.second_step": second.loss} if second else {})
        for place, loss in losses.items():
            if loss == "competition" and not whole:
                raise ValueError(f"{place}.loss: needs all levels of a study: set fitting.optimisation.whole_studies")
        return self

    @property
    def draws_errors(self) -> bool:
        """Whether it is trained with the errors of the landmarks that its views start from."""
        augmentation = self.fitting.augmentation
        return "localiser" in (augmentation.jitter_mm, augmentation.slice_jitter)

    @model_validator(mode="after")
    def _heads_that_can_learn(self) -> MemberRecipe:
        heads, augmentation, inputs = self.fitting.auxiliary, self.fitting.augmentation, self.member.inputs
        if heads.heads and self.member.role != "grader":
            raise ValueError("fitting.auxiliary: is for graders: the loss of a localiser is that of its points already")
        if heads.streams and len(inputs) == 1:
            raise ValueError("fitting.auxiliary.streams: grades each view alone, and there is one only: leave it out")
        if not heads.depth:
            return self
        first, unit = inputs[0], UNITS[self.member.unit][0]
        if first.slices.count == 1:
            raise ValueError("fitting.auxiliary.depth: finds one of several slices, and the first view has one")
        shuffled = augmentation.slice_shuffle and first.series in augmentation.slice_shuffle_series
        changes = {"mixup": augmentation.mixup, "cutmix": augmentation.cutmix, "slice_shuffle": shuffled}
        if used := [change for change, share in changes.items() if share]:
            raise ValueError(
                f"fitting.auxiliary.depth: with {used[0]} no slice is the target's: leave one of the two out"
            )
        if augmentation.mirror and unit.side is None and first.side(unit) is not None:
            raise ValueError(
                "fitting.auxiliary.depth: a mirrored study shows another side in the first view: "
                "let a view of the midline be the first"
            )
        return self

    def with_fitting(self, **changes: Any) -> MemberRecipe:
        """The network with other values of `fitting`."""
        return self.model_copy(update={"fitting": self.fitting.model_copy(update=changes)})

    def with_optimisation(self, **changes: Any) -> MemberRecipe:
        """The network with other values of `fitting.optimisation`."""
        return self.with_fitting(optimisation=self.fitting.optimisation.model_copy(update=changes))

    @property
    def pooled_as(self) -> str:
        """The name under which its out-of-fold predictions are pooled."""
        return self.model or self.member.name

    def name_in(self, fold: int) -> str:
        """Its name in manifests, where each fold is a member of its own."""
        return f"{self.member.name}_fold{fold}"

    def is_trained_in(self, fold: int) -> bool:
        """Whether this network is trained in a fold."""
        return self.backbone is None or self.backbone.folds is None or fold in self.backbone.folds


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
    localisers_of: str | None = None
    """Name of the recipe, beside this file or of this project, whose localisers these are: trained once for both, in
    its folder of RUNS."""
    localisers: dict[str, Localiser]
    """None of its own where they are another recipe's."""
    backbones: dict[str, Backbone]
    graders: dict[str, Grader]
    routes: dict[str, RouteRecipe] = {}
    """A grader is run once in each of its routes, at the landmarks of the route's localisers alone, and its answers are
    averaged; one in no route is run at the landmarks of all localisers, merged."""

    def routes_of(self, member: str) -> tuple[str, ...]:
        """The routes that the network of this name takes part in; "" is that of all localisers."""
        stage, _, name = self.place_of(member)[0].partition(".")
        if stage == "localisers":
            return ("", *(route for route, one in self.routes.items() if name in one.localisers))
        return tuple(route for route, one in self.routes.items() if name in one.graders) or ("",)

    def backbones_of(self, grader: str) -> tuple[str, ...]:
        """Names of the backbones of a grader."""
        names = self.graders[grader].backbones
        return tuple(self.backbones) if names is None else names

    @property
    def localisers_owner(self) -> str:
        """Name of the recipe whose the localisers are."""
        return self.localisers_of or self.name

    def packed_folds(self, member: str) -> tuple[int, ...] | None:
        """The folds whose network of this name is packaged; None = all."""
        localiser = self.localisers.get(member.removeprefix(f"{self.localisers_owner}_"))
        return None if localiser is None else localiser.packed_folds

    def members(self) -> tuple[MemberRecipe, ...]:
        """All networks of the recipe: localisers first, in their order, then every grader with every backbone."""
        graders = [(name, backbone) for name in self.graders for backbone in self.backbones_of(name)]
        return (
            *[self.localiser(name) for name in self.localisers],
            *[self.grader(name, backbone) for name, backbone in graders],
        )

    def place_of(self, member: str) -> tuple[str, str]:
        """Dotted paths of the parts that describe the network of this name: its stage, and its backbone or ""."""
        for name in self.localisers:
            if member == f"{self.localisers_owner}_{name}":
                return f"localisers.{name}", ""
        for name in self.graders:
            for backbone in self.backbones_of(name):
                if member == f"{self.name}_{name}_{backbone}":
                    return f"graders.{name}", f"backbones.{backbone}"
        raise KeyError(member)

    def localiser(self, name: str) -> MemberRecipe:
        """The network of one of `localisers`."""
        spec = self.localisers[name]
        own_name = f"{self.localisers_owner}_{name}"
        return MemberRecipe(member=_member(own_name, "localiser", spec), fitting=spec.fitting)

    def owner_of(self, member: str) -> str:
        """Name of the recipe that the network of this name belongs to."""
        shared = {f"{self.localisers_owner}_{name}" for name in self.localisers}
        return self.localisers_owner if member in shared else self.name

    def grader(self, name: str, backbone_name: str) -> MemberRecipe:
        """The network of one of `graders` with one of its backbones."""
        grader, backbone = self.graders[name], self.backbones[backbone_name]
        inputs = tuple(view.model_copy(update={"size_px": backbone.size_px}) for view in grader.inputs)
        rate = {"learning_rate": backbone.learning_rate}
        optimisation = grader.fitting.optimisation.model_copy(update=rate)
        return MemberRecipe(
            member=_member(
                f"{self.name}_{name}_{backbone_name}", "grader", grader.model_copy(update={"inputs": inputs})
            ),
            model="" if backbone.folds is None else f"{self.name}_{name}",
            backbone=backbone,
            weight=grader.weight,
            fitting=grader.fitting.model_copy(update={"optimisation": optimisation}),
        )


def _member(name: str, role: Literal["localiser", "grader"], spec: Localiser | Grader) -> Member:
    answers = spec.answers if isinstance(spec, Localiser) else "points"
    return Member(
        name=name, role=role, unit=spec.unit, inputs=spec.inputs, targets=spec.targets, answers=answers, tta=spec.tta
    )
