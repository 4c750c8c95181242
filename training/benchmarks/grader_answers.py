"""Finished systems of one fold, and what all their graders answer for the phantom's test studies."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from kernels.lumbar.dicom.study import Study
from kernels.lumbar.labels import ROWS, SEVERITIES
from kernels.lumbar.manifest import Artefact, Manifest, Route
from kernels.lumbar.networks.devices import default_device
from kernels.lumbar.networks.loading import LoadedMember
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.competition import read_series_table
from kernels.lumbar.run.read_ahead import read_ahead
from training.data import out_of_fold
from training.data.out_of_fold import Answers
from training.evaluation.predictor import Prediction, Predictor
from training.evaluation.truth import read_landmarks
from training.evaluation.validate import answer_table
from training.recipe.schema import MemberRecipe, Recipe
from training.runs import RunFolder, read_run, route_of

# Whose landmarks graders look at: their recipe's, those on which all localisers agree, the true ones.
OWN, AGREED, TRUE = "own", "agreed", "true"


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
    agreed = Route(name="all localisers", localisers=everyone, graders=graders)
    first = systems[0].folder
    manifest = Manifest(
        name="all systems",
        priors=json.loads(first.priors.read_text()),
        shape=json.loads(first.shape.read_text()),
        artefacts=tuple(artefacts),
        routes=tuple(own),
    )
    return manifest, {OWN: tuple(own), AGREED: (agreed,), TRUE: (agreed,)}


@dataclass(frozen=True)
class Remembering(LoadedMember):
    """A network that is not run again on what it has seen of a study: most localisers look at whole images, and answer
    the same whoever else is asked."""

    answers: dict[bytes, torch.Tensor] = field(default_factory=dict)

    def __call__(self, views: Sequence[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        """As of LoadedMember."""
        seen = hashlib.blake2b(digest_size=16)
        for tensor in (*views, present):
            seen.update(str(tuple(tensor.shape)).encode())
            seen.update(tensor.contiguous().numpy().tobytes())
        key = seen.digest()
        if key not in self.answers:
            self.answers[key] = super().__call__(views, present)
        return self.answers[key].clone()


class TestedGrader:
    """All networks of all systems, loaded once, and the ways in which they look at a study."""

    def __init__(self, runs: Path, systems: Sequence[System], fold: int) -> None:
        manifest, routes = manifest_of(runs, systems, fold)
        self._manifests = {where: manifest.model_copy(update={"routes": its}) for where, its in routes.items()}
        self._predictor = Predictor(manifest, runs, default_device())
        self.problems = [problem.detail for problem in self._predictor.problems]
        self._networks = {
            name: Remembering(one.artefact, one.module, one.device, one.half)
            for name, one in self._predictor.members.items()
        }
        self._predictor.members = {**self._networks}

    def grade(self, study: Study, truth: Mapping[str, np.ndarray], budget: Clock) -> dict[str, Prediction]:
        """What all graders say of a study, by whose landmarks they look at; `truth`: the true ones."""
        said = {}
        for where, manifest in self._manifests.items():
            self._predictor.manifest = manifest
            said[where] = self._predictor.predict(study, budget, landmarks=truth if where == TRUE else None)
        for network in self._networks.values():
            network.answers.clear()
        return said


def grade_test_studies(
    data: Path, runs: Path, systems: Sequence[System], fold: int, labels: pd.DataFrame
) -> dict[str, Answers]:
    """What all graders answer for the test studies, named as in the out-of-fold tables, by whose landmarks they look
    at.  Each study is read once."""
    truth = read_landmarks(data, "test")
    series = read_series_table(data / "test_series_descriptions.csv").series
    studies = sorted(labels.index)
    grader, budget = TestedGrader(runs, systems, fold), Clock(float("inf"))
    for problem in grader.problems:
        sys.stderr.write(f"left out: {problem}\n")
    read = read_ahead(data / "test_images", series, studies, budget)
    found: dict[str, dict[str, Prediction]] = {where: {} for where in (OWN, AGREED, TRUE)}
    for study in tqdm(read, total=len(studies), unit="study", desc="grading test studies"):
        for where, prediction in grader.grade(study, truth.get(study.study_id, {}), budget).items():
            found[where][study.study_id] = prediction
    answers = {}
    for where, predictions in found.items():
        tables = [answer_table(one.name, one.graders, fold, predictions, labels) for one in systems]
        answers[where] = out_of_fold.answers_of(pd.concat(tables, ignore_index=True))
    return answers


def labels_of(solution: pd.DataFrame) -> pd.DataFrame:
    """Study × 25 severities of a one-hot solution; -100 where a row is missing."""
    parts = solution["row_id"].str.partition("_")
    severities = solution[list(SEVERITIES)].to_numpy(float).argmax(1)
    table = pd.DataFrame({"study": parts[0], "row": parts[2], "severity": severities})
    wide = table.pivot(index="study", columns="row", values="severity").reindex(columns=list(ROWS))
    return wide.fillna(out_of_fold.MISSING).astype(int)
