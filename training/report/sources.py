"""Inputs of the report: out-of-fold answers, networks with their provenance, localisation errors, the ensemble."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, ConfigDict

from kernels.lumbar.labels import GROUPS
from kernels.lumbar.manifest import Provenance
from training.data.foreign_answers import ELSEWHERE
from training.data.out_of_fold import Answers, Average, Rule, read
from training.ensemble import sources as ensemble_sources
from training.ensemble.search import Ensemble, MemberCosts, simple_mean
from training.ensemble.strategies import FREE, RecipeWeights, shipped
from training.evaluation.intervals import Interval
from training.evaluation.landmark_errors import LandmarkError
from training.evaluation.metric import pooled
from training.packaging.ensemble_weights import ALL_GROUPS, FoundEnsemble, read_ensemble
from training.recipe_schema.load import names_of
from training.runs import (
    ARTEFACT,
    DONE,
    ENSEMBLE,
    LOCALISER_ERRORS,
    OUT_OF_FOLD_TABLES,
    RESOLVED_RECIPE,
)

# An ensemble file whose own score differs by more from that of these answers was made from others.
SAME_SCORE = 1e-6
HOW_TO = "make one that fits by make ensemble with the same RUNS, RECIPES, PROFILE and OOF"
COMMIT_LETTERS, FINGERPRINT_LETTERS = 12, 16
# What reading a JSON file of another shape raises; pydantic's ValidationError is a ValueError.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


def _with_nan(stored: object) -> dict[str, object]:
    """JSON has no NaN and keeps null instead."""
    if not isinstance(stored, dict):
        raise ValueError("a score is an object with mean, low and high")
    return {key: math.nan if one is None else one for key, one in stored.items()}


StoredInterval = Annotated[Interval, BeforeValidator(_with_nan)]


class ReportError(Exception):
    """Nothing to report, or runs that do not fit together, and what to do."""


def short_commit(name: str) -> str:
    """A commit's first letters, with the + of changed files."""
    return name[:COMMIT_LETTERS] + ("+" if name.endswith("+") else "")


class EnsembleFile(FoundEnsemble):
    """The result of `make ensemble` (ensemble.result.SearchResult), as far as the report shows it."""

    model_config = ConfigDict(allow_inf_nan=True)

    strategy: str = FREE
    reason: str = ""
    studies: int
    budget: float | None
    """Seconds a study that it was searched for; None = no limit."""
    scores: dict[str, dict[str, StoredInterval]]
    fitted_score: float

    @cached_property
    def ensemble(self) -> Ensemble:
        """Weights, multipliers and temperatures as arrays."""
        weights = [[its[group] for group in ALL_GROUPS] for its in self.weights.values()]
        multipliers = np.array([self.multipliers[group] for group in ALL_GROUPS])
        temperatures = np.array([self.temperatures.get(group, 1.0) for group in ALL_GROUPS])
        return Ensemble(tuple(self.weights), np.array(weights), multipliers, temperatures=temperatures)


@dataclass(frozen=True)
class TrainedNetwork:
    """A finished network of one fold."""

    member: str
    """Without its fold."""
    role: str
    provenance: Provenance
    pooled_as: str
    weight: dict[str, float]
    """Condition group → weight."""
    recipe_text: str
    """recipe.resolved.yaml, empty where it is gone."""

    @property
    def commit(self) -> str:
        """Of the code that trained it, as the page shows it."""
        return short_commit(self.provenance.git_commit)

    @property
    def fingerprint(self) -> str:
        """Of the data, as the page shows it."""
        return self.provenance.data_fingerprint[:FINGERPRINT_LETTERS]


@dataclass(frozen=True)
class RecipeRun:
    """RUNS/<recipe>/<profile>."""

    name: str
    average: Average
    """How the recipe averages its graders."""
    members: frozenset[str]
    """ "located/member" of its graders."""
    networks: tuple[TrainedNetwork, ...]
    localisation_errors: dict[int, dict[str, LandmarkError]]
    """Fold → view → error on held-out studies."""
    named: str
    """Its recipe as it was named: by name, or by the path of a file."""


@dataclass(frozen=True)
class ReportSources:
    """All inputs of the report but images."""

    folder: Path
    profile: str
    runs: tuple[RecipeRun, ...]
    answers: Answers
    rule: Rule
    costs: MemberCosts
    recipe_weights: list[RecipeWeights]
    """The recipes of this project among `runs`, with their own weights."""
    searched: EnsembleFile | None
    """None: the simple mean of all members replaces the ensemble."""
    foreign: tuple[str, ...] = ()
    """Members from elsewhere, by their own names."""
    remarks: list[str] = field(default_factory=list)

    @property
    def ensemble(self) -> Ensemble:
        """The searched one, or the simple mean of all members."""
        return self.searched.ensemble if self.searched else shipped(simple_mean(self.answers, self.rule), self.answers)

    def system(self, run: RecipeRun) -> Ensemble:
        """A recipe's graders with its own weights (equal ones where no network has any), averaged its own way."""
        own = {one.pooled_as: one.weight for one in run.networks if one.role == "grader"}
        names = [name for name in self.answers.members if name in run.members]
        weights = {name: own.get(name.partition("/")[2], dict.fromkeys(GROUPS, 1.0)) for name in names}
        return RecipeWeights(run.name, weights, run.average).ensemble(self.answers)


def read_sources(
    runs: Path,
    profile: str,
    recipes: Sequence[str],
    ensemble: Path | None,
    foreign: Path | None = None,
    data: Path | None = None,
) -> ReportSources:
    """Read the finished runs of a profile.  `ensemble`: None = RUNS/ensemble.json, if it is there and fits.

    `foreign`, `data`: members from elsewhere, as `make ensemble` takes them.  Raises ReportError; RecipeError,
    SearchError, OutOfFoldError, FoldsError or TablesError for recipes, predictions, folds, priors, seconds and labels
    that cannot be used.
    """
    names = names_of(recipes) if recipes else []
    found = ensemble_sources.read_sources(runs, profile, names or None, foreign, data)
    priors = found.priors()
    searched, replaced = _find_ensemble(runs, ensemble, found.answers, priors)
    costs, uncosted = found.costs()
    averages = {recipe.name: recipe.average for recipe in found.recipes}
    named = {Path(name).stem: name for name in names}
    return ReportSources(
        folder=runs,
        profile=profile,
        runs=tuple(_run(folder, averages, named) for folder in found.folders),
        answers=found.answers,
        rule=Rule(searched.average if searched else "logits", priors),
        costs=costs,
        recipe_weights=found.recipe_weights(),
        searched=searched,
        foreign=tuple(found.foreign_members()),
        remarks=[*found.remarks, *filter(None, (replaced, uncosted))],
    )


def _run(folder: Path, averages: Mapping[str, Average], named: Mapping[str, str]) -> RecipeRun:
    table = read(sorted(folder.glob(OUT_OF_FOLD_TABLES)))
    networks = tuple(_network(done.parent) for done in sorted(folder.glob(f"*/fold*/{DONE}")))
    errors = {}
    for path in sorted(folder.glob(f"{LOCALISER_ERRORS}*.json")):
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))["errors"]
            errors[int(path.stem.partition("_fold")[2])] = {view: LandmarkError(**one) for view, one in stored.items()}
        except UNREADABLE as error:
            raise ReportError(f"{path} does not hold errors by view: {error!r}") from error
    members = frozenset(table["located"] + "/" + table["member"])
    name, by_fold = folder.parent.name, dict(sorted(errors.items()))
    return RecipeRun(name, averages.get(name, "logits"), members, networks, by_fold, named.get(name, name))


def _network(folder: Path) -> TrainedNetwork:
    path, text = folder / ARTEFACT, folder / RESOLVED_RECIPE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        provenance = Provenance.model_validate(content["provenance"])
        resolved = provenance.resolved_recipe
        return TrainedNetwork(
            folder.parent.name,
            str(content["member"]["role"]),
            provenance,
            str(resolved.get("model") or folder.parent.name),
            {str(group): float(weight) for group, weight in (resolved.get("weight") or {}).items()},
            text.read_text(encoding="utf-8") if text.is_file() else "",
        )
    except UNREADABLE as error:
        raise ReportError(f"{path} is no artefact of a finished network: {error!r}".splitlines()[0]) from error


def _find_ensemble(
    runs: Path, path: Path | None, answers: Answers, priors: Mapping[str, tuple[float, float, float]]
) -> tuple[EnsembleFile | None, str]:
    """The ensemble, or None with the reason.  One that was named and cannot be used raises ReportError;
    one that cannot be read, UnusableRun."""
    file = path or runs / ENSEMBLE
    replaced = f"so the simple mean of all members replaces the ensemble: {HOW_TO}."
    if path is None and not file.is_file():
        return None, f"There is no {file}, {replaced}"
    found = read_ensemble(file, EnsembleFile)
    if not (misfit := _misfit(found, answers, priors)):
        return found, ""
    if path is not None:
        raise ReportError(f"{file} was made from other answers: {misfit}; {HOW_TO}")
    return None, f"{file} was made from other answers ({misfit}), {replaced}"


def _misfit(found: EnsembleFile, answers: Answers, priors: Mapping[str, tuple[float, float, float]]) -> str:
    """Why these are not the answers that the ensemble was fitted on, or nothing."""
    absent = [name for name in found.ensemble.members if name not in answers.members]
    if absent:
        remedy = ", whose predictions OOF= names" if absent[0].startswith(f"{ELSEWHERE}/") else ""
        return f"these have no member {absent[0]}{remedy}"
    if found.studies != len(answers.studies):
        return f"those were of {found.studies} studies, these of {len(answers.studies)}"
    score = pooled(answers.labels, found.ensemble.predict(answers, Rule(found.average, priors))).final
    if abs(score - found.fitted_score) > SAME_SCORE:
        return f"with those it scored {found.fitted_score:.4f}, with these {score:.4f}"
    return ""
