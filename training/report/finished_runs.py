"""What the report reads: out-of-fold answers, networks with their provenance, localisation errors, the ensemble."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import ValidationError

from kernels.lumbar.labels import GROUPS
from kernels.lumbar.manifest import Provenance
from training.data.out_of_fold import Answers, Average, Rule, answers_of, read
from training.ensemble.search import Ensemble, MemberCosts, simple_mean
from training.ensemble.sources import TABLES, read_costs, read_priors, standing_of, trouble_with, usable
from training.ensemble.strategies import Standing
from training.evaluation.landmark_errors import LandmarkError
from training.recipe.load import load_named
from training.recipe.schema import Profile, Recipe, RecipeError
from training.report.ensemble_file import Found, ReportError, find_ensemble
from training.runs import RunFolder

PLAIN = np.ones((len(GROUPS), 3))


@dataclass(frozen=True)
class TrainedNetwork:
    """A finished network of one fold."""

    member: str
    """Without its fold."""
    role: str
    pooled_as: str
    weight: dict[str, float]
    provenance: Provenance
    recipe_text: str
    """recipe.resolved.yaml, empty where it is gone."""


@dataclass(frozen=True)
class RecipeRun:
    """RUNS/<recipe>/<profile>."""

    name: str
    average: Average
    """How the recipe averages its graders."""
    networks: tuple[TrainedNetwork, ...]
    localisers: dict[int, dict[str, LandmarkError]]
    """Fold → view → what its localisers miss by."""


@dataclass(frozen=True)
class ReportSources:
    """Everything that the report is made of, but for images."""

    folder: Path
    profile: str
    runs: tuple[RecipeRun, ...]
    answers: Answers
    owners: dict[str, str]
    """Member of `answers` → its recipe."""
    rule: Rule
    costs: MemberCosts
    standing: list[Standing]
    """The recipes as they stand, of those that this project knows."""
    found: Found | None
    """None where the simple mean stands in."""
    remarks: list[str] = field(default_factory=list)

    @property
    def ensemble(self) -> Ensemble:
        """The one that was found, or the simple mean of all members."""
        return self.found.ensemble if self.found else simple_mean(self.answers, self.rule)

    def system(self, run: RecipeRun) -> tuple[Ensemble, Rule]:
        """A recipe's graders with its own weights (equal ones where no network says them), averaged its own way."""
        names = tuple(name for name in self.answers.members if self.owners[name] == run.name)
        own = {one.pooled_as: one.weight for one in run.networks if one.role == "grader"}
        equal = dict.fromkeys(GROUPS, 1.0)
        weights = [[own.get(name.partition("/")[2], equal).get(group, 0.0) for group in GROUPS] for name in names]
        return Ensemble(names, np.array(weights, np.float64).reshape(-1, len(GROUPS)), PLAIN), Rule(
            run.average, self.rule.priors
        )


def read_sources(runs: Path, profile: str, recipes: Sequence[str], ensemble: Path | None) -> ReportSources:
    """Read the finished runs of a profile.  `ensemble`: None = RUNS/ensemble.json, if it is there and fits.

    Raises ReportError; SearchError or OutOfFoldError for answers, priors and seconds that cannot be used.
    """
    folders, left_out = _fresh(_finished(runs, profile, recipes), strict=bool(recipes))
    table = read(path for folder in folders for path in sorted(folder.glob(TABLES)))
    answers, remark = usable(answers_of(table))
    owners = dict(zip(table["located"] + "/" + table["member"], table["recipe"], strict=True))
    priors = read_priors([folder.parent / "priors.json" for folder in folders])
    found, stand_in = find_ensemble(runs, ensemble, answers, priors)
    costs, uncosted = read_costs([folder / "seconds.json" for folder in folders], answers.members)
    return ReportSources(
        folder=runs,
        profile=profile,
        runs=tuple(_run(folder) for folder in folders),
        answers=answers,
        owners={str(name): str(recipe) for name, recipe in owners.items()},
        rule=Rule(found.average if found else "logits", priors),
        costs=costs,
        standing=[standing_of(recipe) for folder in folders if (recipe := _recipe_of(folder)) is not None],
        found=found,
        remarks=[one for one in (*left_out, stand_in, remark, uncosted) if one],
    )


def _finished(runs: Path, profile: str, recipes: Sequence[str]) -> list[Path]:
    names = recipes or sorted(path.name for path in runs.glob("*") if path.is_dir())
    folders = [runs / name / profile for name in names]
    finished = [folder for folder in folders if any(folder.glob(TABLES))]
    if recipes and len(finished) < len(folders):
        first = next(folder for folder in folders if folder not in finished)
        raise ReportError(f"{first} has no out-of-fold answers: make train-all first, or leave its recipe out")
    if not finished:
        raise ReportError(f"{runs} has no out-of-fold answers of profile {profile}: make train-all first")
    return finished


def _fresh(folders: Sequence[Path], strict: bool) -> tuple[list[Path], list[str]]:
    """Those whose answers are of the networks beside them; and why others are left out, or refused where `strict`."""
    fresh, remarks = [], []
    for folder in folders:
        recipe = _recipe_of(folder)
        table = read(sorted(folder.glob(TABLES)))
        trouble = trouble_with(RunFolder(folder.parents[1], recipe), table) if recipe else ""
        if not trouble:
            fresh.append(folder)
        else:
            remarks.append(f"Left out: {folder.parent.name} {trouble}.")
    if remarks and (strict or not fresh):
        raise ReportError(remarks[0].removeprefix("Left out: ").removesuffix("."))
    return fresh, remarks


def _recipe_of(folder: Path) -> Recipe | None:
    """None for one that this checkout does not have, or not in this profile."""
    try:
        return load_named(folder.parent.name, cast(Profile, folder.name))
    except RecipeError:
        return None


def _run(folder: Path) -> RecipeRun:
    name = folder.parent.name
    recipe = _recipe_of(folder)
    average: Average = recipe.average if recipe else "logits"
    networks = tuple(_network(done.parent) for done in sorted(folder.glob("*/fold*/done.json")))
    errors = {}
    for path in sorted(folder.glob("localiser_errors_fold*.json")):
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))["errors"]
            errors[int(path.stem.partition("_fold")[2])] = {view: LandmarkError(**one) for view, one in kept.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ReportError(f"{path} does not hold errors by view: {error!r}") from error
    return RecipeRun(name, average, networks, dict(sorted(errors.items())))


def _network(folder: Path) -> TrainedNetwork:
    path, text = folder / "artefact.json", folder / "recipe.resolved.yaml"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        provenance = Provenance.model_validate(content["provenance"])
        resolved = provenance.resolved_recipe
        return TrainedNetwork(
            folder.parent.name,
            str(content["member"]["role"]),
            str(resolved.get("model") or folder.parent.name),
            {str(group): float(weight) for group, weight in (resolved.get("weight") or {}).items()},
            provenance,
            text.read_text(encoding="utf-8") if text.is_file() else "",
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise ReportError(f"{path} is no artefact of a finished network: {error!r}".splitlines()[0]) from error
