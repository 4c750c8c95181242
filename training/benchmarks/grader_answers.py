"""Finished systems of one fold, and the answers of all their graders for the phantom's test studies."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from kernels.lumbar.labels import ROWS, SEVERITIES, split_row_ids
from kernels.lumbar.manifest import Artefact, Manifest, Route
from kernels.lumbar.networks.devices import default_device
from kernels.lumbar.networks.loading import LoadedMember
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.competition import read_series_table
from kernels.lumbar.run.read_ahead import read_ahead
from training.data import out_of_fold
from training.data.out_of_fold import Answers, Rule
from training.ensemble.sources import read_priors
from training.evaluation.predictor import Prediction, Predictor
from training.evaluation.truth import read_landmarks
from training.evaluation.validate import answer_table
from training.recipe_schema.schema import MemberRecipe, Recipe
from training.runs import RunFolder, route_of, routes_of

# Landmarks of the graders' crops: of their recipe's localisers, of all localisers together, the true ones.
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
    members, missing = folder.finished(fold)
    if missing or not folder.out_of_fold(fold).is_file():
        what = ", ".join(one.member.name for one in missing) or "its out-of-fold answers"
        why = f"not trained with profile {recipe.profile}, or by another recipe"
        sys.stderr.write(f"{recipe.name} is left out: {why}: {what} (make train-all)\n")
        return None
    by_role = {role: tuple(one for one in members if one.member.role == role) for role in ("localiser", "grader")}
    return System(folder, by_role["localiser"], by_role["grader"])


def held_out_answers(systems: Sequence[System], fold: int) -> tuple[Answers, Rule]:
    """Of all graders for the studies that the fold held out, and the rule to mix them by.  Raises OutOfFoldError."""
    answers = out_of_fold.answers_of(out_of_fold.read([system.folder.out_of_fold(fold) for system in systems]))
    return answers, Rule("logits", read_priors([system.folder.priors for system in systems]))


def manifest_of(runs: Path, systems: Sequence[System], fold: int) -> tuple[Manifest, dict[str, tuple[Route, ...]]]:
    """All networks of all systems, and their routes for each kind of landmarks."""
    artefacts: dict[str, Artefact] = {}  # recipes may share localisers
    own: list[Route] = []
    merged: list[Route] = []
    for system in systems:
        members = [*system.localisers, *system.graders]
        found = [system.folder.artefact(member.member.name, fold, runs) for member in members]
        own += routes_of(system.folder.recipe, found, members)
        merged.append(route_of(system.name, found, members))
        artefacts |= {one.member.name: one for one in found}
    localisers = tuple(dict.fromkeys(name for route in merged for name in route.localisers))
    graders = tuple(grader for route in merged for grader in route.graders)
    agreed = Route(name="all localisers", localisers=localisers, graders=graders)
    first = systems[0].folder
    manifest = Manifest(
        name="all systems",
        priors=json.loads(first.priors.read_text()),
        shape=json.loads(first.shape.read_text()),
        artefacts=tuple(artefacts.values()),
        routes=tuple(own),
    )
    return manifest, {OWN: tuple(own), AGREED: (agreed,), TRUE: (agreed,)}


@dataclass(frozen=True)
class CachedMember(LoadedMember):
    """A network that keeps its answers by their inputs: most localisers take whole images, the same for all routes."""

    answers: dict[bytes, torch.Tensor] = field(default_factory=dict)

    def __call__(self, views: Sequence[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        """As of LoadedMember."""
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (*views, present):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        key = digest.digest()
        if key not in self.answers:
            self.answers[key] = super().__call__(views, present)
        return self.answers[key].clone()


def grade_test_studies(
    data: Path, runs: Path, systems: Sequence[System], fold: int, labels: pd.DataFrame
) -> dict[str, Answers]:
    """Kind of landmarks → answers of all graders, named as in the out-of-fold tables.  Each study is read once."""
    truth = read_landmarks(data, "test")
    series = read_series_table(data / "test_series_descriptions.csv").series
    studies = sorted(labels.index)
    manifest, routes = manifest_of(runs, systems, fold)
    predictor = Predictor(manifest, runs, default_device())
    for problem in predictor.problems:
        sys.stderr.write(f"left out: {problem.detail}\n")
    cached = {
        name: CachedMember(one.artefact, one.module, one.device, one.half) for name, one in predictor.members.items()
    }
    predictor.members = {**cached}
    clock = Clock(float("inf"))
    read = read_ahead(data / "test_images", series, studies, clock)
    found: dict[str, dict[str, Prediction]] = {landmarks: {} for landmarks in routes}
    for study in tqdm(read, total=len(studies), unit="study", desc="grading test studies"):
        for landmarks, its in routes.items():
            predictor.manifest = manifest.model_copy(update={"routes": its})
            known = truth.get(study.study_id, {}) if landmarks == TRUE else None
            found[landmarks][study.study_id] = predictor.predict(study, clock, landmarks=known)
        for network in cached.values():
            network.answers.clear()
    answers = {}
    for landmarks, predictions in found.items():
        tables = [answer_table(one.name, one.graders, fold, predictions, labels) for one in systems]
        answers[landmarks] = out_of_fold.answers_of(pd.concat(tables, ignore_index=True))
    return answers


def labels_of(solution: pd.DataFrame) -> pd.DataFrame:
    """Study × 25 severities of a one-hot solution; -100 where a row is missing."""
    studies, rows = zip(*split_row_ids(solution["row_id"]), strict=True)
    severities = solution[list(SEVERITIES)].to_numpy(float).argmax(1)
    table = pd.DataFrame({"study": studies, "row": rows, "severity": severities})
    wide = table.pivot(index="study", columns="row", values="severity").reindex(columns=list(ROWS))
    return wide.fillna(out_of_fold.MISSING).astype(int)
