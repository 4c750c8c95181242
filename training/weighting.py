"""An ensemble that training.evaluation.ensemble found, laid onto packaged runs: who takes part, how much, and when."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from kernels.lumbar.manifest import Factor, GraderWeight, Route
from kernels.lumbar.specs import Group, Spec
from training.packing import Run, UnusableRun


class FoundEnsemble(Spec):
    """The part of the search's result that a package needs; the rest is for people."""

    average: Literal["logits", "probabilities"]
    weights: dict[str, dict[Group, float]]
    """ "located/member" → weight by condition group."""
    multipliers: dict[Group, tuple[Factor, Factor, Factor]]
    order: tuple[str, ...] = Field(min_length=1)
    """Members as they should run, so that the score falls fastest."""


def read_ensemble(path: Path) -> FoundEnsemble:
    """Raises UnusableRun where the file is not what the search writes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return FoundEnsemble.model_validate({name: content[name] for name in FoundEnsemble.model_fields})
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UnusableRun(f"{path} is no ensemble that make ensemble wrote: {reason}") from error


def chosen_runs(runs: Mapping[str, Sequence[Run]], found: FoundEnsemble) -> dict[str, list[Run]]:
    """The runs of each recipe that take part: graders with a weight, and the localisers of their recipe.

    Raises UnusableRun where the ensemble names what is not there.
    """
    there = set(_models(runs).values())
    if absent := [name for name in found.order if name not in there]:
        raise UnusableRun(f"the ensemble wants {', '.join(absent)}, which is not among the finished runs given")
    chosen = {}
    for recipe, its in runs.items():
        kept = [run for run in its if _is_localiser(run) or f"{recipe}/{run.recipe.pooled_as}" in found.order]
        if any(not _is_localiser(run) for run in kept):
            chosen[recipe] = kept
    return chosen


def weighted(routes: Sequence[Route], runs: Mapping[str, Sequence[Run]], found: FoundEnsemble) -> tuple[Route, ...]:
    """The routes, one a recipe, with the found weights, in the found order.  A model's folds share its weight."""
    order = {name: place for place, name in enumerate(found.order)}
    models = _models(runs)
    folds = Counter(models.values())
    new = []
    for route in routes:
        ranked = sorted(route.graders, key=lambda grader: order[models[grader.name]])
        graders = []
        for grader in ranked:
            model = models[grader.name]
            share = {group: weight / folds[model] for group, weight in found.weights[model].items()}
            graders.append(GraderWeight(name=grader.name, weight=share))
        new.append(route.model_copy(update={"graders": tuple(graders)}))
    return tuple(sorted(new, key=lambda route: order[models[route.graders[0].name]]))


def _models(runs: Mapping[str, Sequence[Run]]) -> dict[str, str]:
    """Name of each run's member in a manifest → "located/member" of the search."""
    pairs = [(recipe, run) for recipe, its in runs.items() for run in its]
    return {run.artefact.member.name: f"{recipe}/{run.recipe.pooled_as}" for recipe, run in pairs}


def _is_localiser(run: Run) -> bool:
    return run.recipe.member.role == "localiser"
