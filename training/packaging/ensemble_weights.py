"""Result of training.ensemble.find applied to packaged runs: members, weights and order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import Field, ValidationError, model_validator

from kernels.lumbar.manifest import Factor, GraderWeight, Route, Stacker, Temperature
from kernels.lumbar.specs import Group, Spec
from training.data.foreign_answers import ELSEWHERE
from training.recipe_schema.problems import schema_problems
from training.runs import TrainedMember, UnusableRun

ALL_GROUPS: tuple[Group, ...] = get_args(Group)
Weight = Annotated[float, Field(ge=0, le=100)]


class FoundEnsemble(Spec):
    """The part of the search's result that a package needs."""

    average: Literal["logits", "probabilities"]
    weights: dict[str, dict[Group, Weight]] = Field(min_length=1)
    """ "located/member" → weight by condition group."""
    multipliers: dict[Group, tuple[Factor, Factor, Factor]]
    temperatures: dict[Group, Temperature] = {}
    left_to_priors: tuple[Group, ...] = ()
    """Groups in which no member has a weight, on purpose."""
    order: tuple[str, ...] = Field(min_length=1)
    """Members in order of execution: the score falls fastest."""
    unshippable: dict[str, str] = {}
    """Members from elsewhere that had no weights when it was searched, with the reason."""
    stacker: Stacker | None = None
    """On top of the mixture; its models are "located/member"."""

    @model_validator(mode="after")
    def _every_condition_is_answered(self) -> FoundEnsemble:
        places = {f"weights.{name}": its.keys() for name, its in self.weights.items()}
        for place, there in (places | {"multipliers": self.multipliers.keys()}).items():
            if absent := [group for group in ALL_GROUPS if group not in there]:
                raise ValueError(f"{place}.{absent[0]}: is missing")
        unweighted = {*self.left_to_priors, *(self.stacker.groups if self.stacker else ())}
        for group in ALL_GROUPS:
            if group not in unweighted and not any(its[group] > 0 for its in self.weights.values()):
                raise ValueError(f"weights: those of {group} are all 0, so no member would grade it")
        return self

    @model_validator(mode="after")
    def _order_is_of_the_members(self) -> FoundEnsemble:
        for name, times in Counter(self.order).items():
            if times > 1:
                raise ValueError(f"order: names {name} {times} times")
            if name not in self.weights:
                raise ValueError(f"order: names {name}, which has no weights")
        for name in self.stacker.graders if self.stacker else ():
            if name not in self.order:
                raise ValueError(f"stacker: names {name}, which is not in order")
        if absent := [name for name in self.weights if name not in self.order]:
            raise ValueError(f"order: lacks {absent[0]}, which has weights")
        return self


Kind = TypeVar("Kind", bound=FoundEnsemble)


def read_ensemble(path: Path, kind: type[Kind]) -> Kind:
    """Read ensemble.json as FoundEnsemble or a model with more of its fields.  Raises UnusableRun."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnusableRun(f"{path} is not there: make ensemble writes it") from error
    except (OSError, ValueError) as error:
        raise UnusableRun(f"{path} cannot be read ({error}): make ensemble writes it anew") from error
    if not isinstance(content, dict):
        raise UnusableRun(f"{path} holds no ensemble: make ensemble writes it anew")
    fields = kind.model_fields
    try:
        return kind.model_validate({name: one for name, one in content.items() if name in fields})
    except ValidationError as error:
        problems = schema_problems(error)
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise UnusableRun(f"{path}: {problems[0]}{more}; make ensemble writes it anew") from error


def foreign_names(found: FoundEnsemble | None, folder: Path | None) -> list[str]:
    """Its members from elsewhere, by their own names.  `folder`: theirs.  Raises UnusableRun where it is not named."""
    names = [one for one in found.order if one.startswith(f"{ELSEWHERE}/")] if found else []
    if names and found and folder is None:
        reason = found.unshippable.get(names[0])
        why = f"which cannot be shipped: {reason}" if reason else "of others"
        raise UnusableRun(f"the ensemble contains {names[0]}, {why}; name the folder of its predictions with OOF=")
    return [name.partition("/")[2] for name in names]


def chosen_runs(runs: Mapping[str, Sequence[TrainedMember]], found: FoundEnsemble) -> dict[str, list[TrainedMember]]:
    """The runs of each recipe that are needed: graders with a weight, and the localisers of their recipe.

    Raises UnusableRun where a member is missing, or has a weight for a group that it does not grade.
    """
    there = set(_models(runs).values())
    if absent := [name for name in found.order if name not in there]:
        raise UnusableRun(f"the ensemble contains {', '.join(absent)}, which is not among the finished runs given")
    chosen = {}
    for recipe, its in runs.items():
        kept = [run for run in its if _is_localiser(run) or f"{recipe}/{run.recipe.pooled_as}" in found.order]
        graders = [run for run in kept if not _is_localiser(run)]
        for run in graders:
            _check_grades(run, f"{recipe}/{run.recipe.pooled_as}", found)
        if graders:
            chosen[recipe] = kept
    return chosen


def _check_grades(run: TrainedMember, name: str, found: FoundEnsemble) -> None:
    graded = run.recipe.member.groups
    for group, weight in found.weights[name].items():
        if weight > 0 and group not in graded:
            raise UnusableRun(
                f"weights.{name}.{group} of the ensemble is {weight:g}, but {name} grades {', '.join(sorted(graded))} "
                "alone: make ensemble writes it anew"
            )


def weighted(
    routes: Sequence[Route], runs: Mapping[str, Sequence[TrainedMember]], found: FoundEnsemble
) -> tuple[Route, ...]:
    """The routes with the ensemble's weights and order.  A model's folds and routes share its weight."""
    order = {name: place for place, name in enumerate(found.order)}
    models = _models(runs)
    folds = Counter(models.values())
    times = Counter(grader.name for route in routes for grader in route.graders)
    new = []
    for route in routes:
        ranked = sorted(route.graders, key=lambda grader: order[models[grader.name]])
        graders = []
        for grader in ranked:
            model = models[grader.name]
            share = {
                group: weight / folds[model] / times[grader.name] for group, weight in found.weights[model].items()
            }
            graders.append(GraderWeight(name=grader.name, weight=share))
        new.append(route.model_copy(update={"graders": tuple(graders)}))
    return tuple(sorted(new, key=lambda route: order[models[route.graders[0].name]]))


def order_of(runs: Mapping[str, Sequence[TrainedMember]], found: FoundEnsemble) -> tuple[str, ...]:
    """Order of execution: the first folds of all models in the ensemble's order, then the second …"""
    by_model: dict[str, list[str]] = {model: [] for model in found.order}
    for name, model in _models(runs).items():
        if model in by_model:
            by_model[model].append(name)
    ranked = [(rank, name) for names in by_model.values() for rank, name in enumerate(names)]
    return tuple(name for _, name in sorted(ranked, key=lambda one: one[0]))


def stacker_of(runs: Mapping[str, Sequence[TrainedMember]], found: FoundEnsemble) -> Stacker | None:
    """The ensemble's stacker; a model's input is the mean of its folds."""
    if found.stacker is None:
        return None
    folds: dict[str, list[str]] = {}
    for name, model in _models(runs).items():
        folds.setdefault(model, []).append(name)
    groups = {
        group: one.model_copy(
            update={"models": tuple(tuple(sum((folds[name] for name in its), [])) for its in one.models)}
        )
        for group, one in found.stacker.groups.items()
    }
    return found.stacker.model_copy(update={"groups": groups})


def _models(runs: Mapping[str, Sequence[TrainedMember]]) -> dict[str, str]:
    """Name of each run's member in a manifest → "located/member" of the search."""
    pairs = [(recipe, run) for recipe, its in runs.items() for run in its]
    return {run.artefact.member.name: f"{recipe}/{run.recipe.pooled_as}" for recipe, run in pairs}


def _is_localiser(run: TrainedMember) -> bool:
    return run.recipe.member.role == "localiser"
