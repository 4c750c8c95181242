"""Finished systems of one fold, and what all their graders answer for the phantom's test studies."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from kernels.lumbar.competition import read_series_table
from kernels.lumbar.labels import ROWS, SEVERITIES
from kernels.lumbar.manifest import Artefact, Manifest, Route
from kernels.lumbar.predictor import Predictor
from training.evaluation import out_of_fold
from training.evaluation.out_of_fold import Answers
from training.evaluation.truth import read_landmarks
from training.evaluation.validate import answer_table, predict_studies, route_of
from training.packing import read_run
from training.recipe import MemberRecipe, Recipe
from training.runs import RunFolder

# Whose landmarks graders look at: their recipe's, those on which all localisers agree, the true ones.
OWN, TOGETHER, TRUE = "own", "together", "truth"


@dataclass(frozen=True)
class System:
    """One recipe's finished networks of a fold."""

    folder: RunFolder
    localisers: tuple[MemberRecipe, ...]
    graders: tuple[MemberRecipe, ...]

    @property
    def name(self) -> str:
        """That of its recipe."""
        return self.folder.recipe.name


def find_system(runs: Path, recipe: Recipe, fold: int) -> System | None:
    """The recipe's networks, where all of a fold are finished and validated; else None, with a line on what to do."""
    folder = RunFolder(runs, recipe)
    members = [one for one in recipe.members() if one.is_trained_in(fold)]
    missing = [one.member.name for one in members if not read_run(folder.job(one.member.name, fold), one)]
    if missing or not folder.out_of_fold(fold).is_file():
        what = ", ".join(missing) or "its out-of-fold answers"
        sys.stderr.write(f"{recipe.name} is left out: not trained, or by another recipe: {what} (make train-all)\n")
        return None
    by_role = {role: tuple(one for one in members if one.member.role == role) for role in ("localiser", "grader")}
    return System(folder, by_role["localiser"], by_role["grader"])


def manifest_of(runs: Path, systems: Sequence[System], fold: int) -> tuple[Manifest, dict[str, tuple[Route, ...]]]:
    """All networks of all systems, and how they look where their own localisers point, or where all agree."""
    artefacts: list[Artefact] = []
    own: list[Route] = []
    for system in systems:
        members = [*system.localisers, *system.graders]
        found = [system.folder.artefact(member.member.name, fold, runs) for member in members]
        own.append(route_of(system.name, found, members))
        artefacts += found
    everyone = tuple(name for route in own for name in route.localisers)
    graders = tuple(grader for route in own for grader in route.graders)
    together = Route(name="together", localisers=everyone, graders=graders)
    first = systems[0].folder
    manifest = Manifest(
        name="all systems",
        priors=json.loads(first.priors.read_text()),
        shape=json.loads(first.shape.read_text()),
        artefacts=tuple(artefacts),
        routes=tuple(own),
    )
    return manifest, {OWN: tuple(own), TOGETHER: (together,), TRUE: (together,)}


def grade_test_studies(
    data: Path, runs: Path, systems: Sequence[System], fold: int, labels: pd.DataFrame
) -> dict[str, Answers]:
    """What all graders answer for the test studies, named as in the out-of-fold tables."""
    truth = read_landmarks(data, "test")
    series = read_series_table(data / "test_series_descriptions.csv").series
    studies = sorted(labels.index)
    manifest, routes = manifest_of(runs, systems, fold)
    predictor = Predictor(manifest, runs, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for problem in predictor.problems:
        sys.stderr.write(f"left out: {problem.detail}\n")
    found: dict[str, Answers] = {}
    for where, its in routes.items():
        predictor.manifest = manifest.model_copy(update={"routes": its})
        known = truth if where == TRUE else None
        predictions = predict_studies(predictor, data / "test_images", series, studies, landmarks=known)
        tables = [answer_table(one.name, one.graders, fold, predictions, labels) for one in systems]
        found[where] = out_of_fold.answers_of(pd.concat(tables, ignore_index=True))
    return found


def labels_of(solution: pd.DataFrame) -> pd.DataFrame:
    """Study × 25 severities of a one-hot solution; -100 where a row is missing."""
    parts = solution["row_id"].str.partition("_")
    severities = solution[list(SEVERITIES)].to_numpy(float).argmax(1)
    table = pd.DataFrame({"study": parts[0], "row": parts[2], "severity": severities})
    wide = table.pivot(index="study", columns="row", values="severity").reindex(columns=list(ROWS))
    return wide.fillna(out_of_fold.MISSING).astype(int)
