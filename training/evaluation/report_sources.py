"""What the report reads: out-of-fold answers, networks with their provenance, localisation errors, the ensemble."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import ValidationError

from kernels.lumbar.labels import GROUPS
from kernels.lumbar.manifest import Provenance
from training.evaluation.ensemble import TABLES, read_costs, read_priors, usable
from training.evaluation.ensemble_search import Costs, Ensemble, Step, simple_mean
from training.evaluation.intervals import Interval
from training.evaluation.landmarks import LandmarkError
from training.evaluation.metric import pooled
from training.evaluation.out_of_fold import Answers, Average, Rule, answers_of, read
from training.recipe import Profile, RecipeError
from training.train_all import load_named

AVERAGES: tuple[Average, ...] = ("logits", "probabilities")
# An ensemble file whose own score differs by more from that of these answers was made from others.
SAME_SCORE = 1e-6
PLAIN = np.ones((len(GROUPS), 3))
HOW_TO = "make one that fits by make ensemble with the same RUNS, RECIPES and PROFILE"


class ReportError(Exception):
    """Nothing to report, or runs that do not fit together, and what to do."""


@dataclass(frozen=True)
class Network:
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
class Run:
    """RUNS/<recipe>/<profile>."""

    name: str
    average: Average
    """How the recipe averages its graders."""
    networks: tuple[Network, ...]
    localisers: dict[int, dict[str, LandmarkError]]
    """Fold → view → what its localisers miss by."""


@dataclass(frozen=True)
class Found:
    """What `make ensemble` left (ensemble.SearchResult)."""

    ensemble: Ensemble
    average: Average
    studies: int
    scores: dict[str, dict[str, Interval]]
    fitted_score: float
    curve: list[Step]


@dataclass(frozen=True)
class Sources:
    """Everything that the report is made of, but for images."""

    profile: str
    runs: tuple[Run, ...]
    answers: Answers
    owners: dict[str, str]
    """Member of `answers` → its recipe."""
    rule: Rule
    costs: Costs
    found: Found | None
    """None where the simple mean stands in."""
    remarks: list[str] = field(default_factory=list)

    @property
    def ensemble(self) -> Ensemble:
        """The one that was found, or the simple mean of all members."""
        return self.found.ensemble if self.found else simple_mean(self.answers, self.rule)

    def system(self, run: Run) -> tuple[Ensemble, Rule]:
        """A recipe's graders with its own weights (equal ones where no network says them), averaged its own way."""
        names = tuple(name for name in self.answers.members if self.owners[name] == run.name)
        own = {one.pooled_as: one.weight for one in run.networks if one.role == "grader"}
        equal = dict.fromkeys(GROUPS, 1.0)
        weights = [[own.get(name.partition("/")[2], equal).get(group, 0.0) for group in GROUPS] for name in names]
        return Ensemble(names, np.array(weights, np.float64).reshape(-1, len(GROUPS)), PLAIN), Rule(
            run.average, self.rule.priors
        )


def read_sources(runs: Path, profile: str, recipes: Sequence[str], ensemble: Path | None) -> Sources:
    """Read the finished runs of a profile.  `ensemble`: None = RUNS/ensemble.json, if it is there and fits.

    Raises ReportError; SearchError or OutOfFoldError for answers, priors and seconds that cannot be used.
    """
    folders = _finished(runs, profile, recipes)
    table = read(path for folder in folders for path in sorted(folder.glob(TABLES)))
    answers, remark = usable(answers_of(table))
    owners = dict(zip(table["located"] + "/" + table["member"], table["recipe"], strict=True))
    priors = read_priors([folder.parent / "priors.json" for folder in folders])
    found, stand_in = _found(runs, ensemble, answers, priors)
    costs, uncosted = read_costs([folder / "seconds.json" for folder in folders], answers.members)
    return Sources(
        profile=profile,
        runs=tuple(_run(folder) for folder in folders),
        answers=answers,
        owners={str(name): str(recipe) for name, recipe in owners.items()},
        rule=Rule(found.average if found else "logits", priors),
        costs=costs,
        found=found,
        remarks=[one for one in (stand_in, remark, uncosted) if one],
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


def _found(runs: Path, path: Path | None, answers: Answers, priors: Any) -> tuple[Found | None, str]:
    """The ensemble, or None with the reason.  One that was named and cannot be used raises ReportError."""
    file = path or runs / "ensemble.json"
    if path is None and not file.is_file():
        return None, f"There is no {file}, so the simple mean of all members stands in for the ensemble: {HOW_TO}."
    found = _read_found(file)
    if not (misfit := _misfit(found, answers, priors)):
        return found, ""
    if path is not None:
        raise ReportError(f"{file} was made from other answers: {misfit}; {HOW_TO}")
    return None, (
        f"{file} was made from other answers ({misfit}), so the simple mean of all members stands in for the "
        f"ensemble: {HOW_TO}."
    )


def _read_found(path: Path) -> Found:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        weights = [[float(its[group]) for group in GROUPS] for its in content["weights"].values()]
        multipliers = np.array([content["multipliers"][group] for group in GROUPS], np.float64)
        if content["average"] not in AVERAGES:
            raise ValueError(f"average is {content['average']!r}")
        return Found(
            Ensemble(tuple(content["weights"]), np.array(weights), multipliers.reshape(len(GROUPS), 3)),
            content["average"],
            int(content["studies"]),
            {name: {part: _interval(one) for part, one in its.items()} for name, its in content["scores"].items()},
            float(content["fitted_score"]),
            [Step(str(one["member"]), float(one["seconds"]), float(one["score"])) for one in content["curve"]],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{path} holds no result of make ensemble: {error!r}") from error


def _interval(content: dict[str, float | None]) -> Interval:
    numbers = [
        np.nan if content[name] is None else float(cast(float, content[name])) for name in Interval.__annotations__
    ]
    return Interval(*numbers)


def _misfit(found: Found, answers: Answers, priors: Any) -> str:
    absent = [name for name in found.ensemble.members if name not in answers.members]
    if absent:
        return f"these have no member {absent[0]}"
    if found.studies != len(answers.studies):
        return f"those were of {found.studies} studies, these of {len(answers.studies)}"
    score = pooled(answers.labels, found.ensemble.predict(answers, Rule(found.average, priors))).final
    if abs(score - found.fitted_score) > SAME_SCORE:
        return f"with those it scored {found.fitted_score:.4f}, with these {score:.4f}"
    return ""


def _run(folder: Path) -> Run:
    name = folder.parent.name
    try:
        average: Average = load_named(name, cast(Profile, folder.name)).average
    except RecipeError:  # a recipe that this checkout does not have, or no longer in this profile
        average = "logits"
    networks = tuple(_network(done.parent) for done in sorted(folder.glob("*/fold*/done.json")))
    errors = {}
    for path in sorted(folder.glob("localiser_errors_fold*.json")):
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))["errors"]
            errors[int(path.stem.partition("_fold")[2])] = {view: LandmarkError(**one) for view, one in kept.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ReportError(f"{path} does not hold errors by view: {error!r}") from error
    return Run(name, average, networks, dict(sorted(errors.items())))


def _network(folder: Path) -> Network:
    path, text = folder / "artefact.json", folder / "recipe.resolved.yaml"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        provenance = Provenance.model_validate(content["provenance"])
        resolved = provenance.resolved_recipe
        return Network(
            folder.parent.name,
            str(content["member"]["role"]),
            str(resolved.get("model") or folder.parent.name),
            {str(group): float(weight) for group, weight in (resolved.get("weight") or {}).items()},
            provenance,
            text.read_text(encoding="utf-8") if text.is_file() else "",
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise ReportError(f"{path} is no artefact of a finished network: {error!r}".splitlines()[0]) from error
