"""Where a run's files lie, and what says that one is finished."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.lumbar.manifest import Artefact, GraderWeight, Route
from training.recipe.schema import MemberRecipe, Recipe

CHECKPOINT = "checkpoint.pt"


class RunsError(ValueError):
    """A file of a finished run that cannot be used: which, and what to do."""


@dataclass(frozen=True)
class RunFolder:
    """RUNS/<recipe>: folds.csv, priors.json and, for each profile, its jobs."""

    runs: Path
    recipe: Recipe

    @property
    def folds(self) -> Path:
        """The one assignment of studies to folds that both stages and all profiles share."""
        return self.runs / self.recipe.name / "folds.csv"

    @property
    def priors(self) -> Path:
        """Priors of the training labels, row → probabilities."""
        return self.runs / self.recipe.name / "priors.json"

    @property
    def shape(self) -> Path:
        """The shape of the training studies' landmarks, or null where too few were annotated."""
        return self.runs / self.recipe.name / "shape.json"

    @property
    def profile(self) -> Path:
        """Everything of one profile."""
        return self.runs / self.recipe.name / self.recipe.profile

    def job(self, member: str, fold: int) -> Path:
        """The folder of one network in one fold."""
        return self.profile / member / f"fold{fold}"

    def localiser_errors(self, fold: int) -> Path:
        """What the localisers of a fold miss by, on the studies they never saw."""
        return self.profile / f"localiser_errors_fold{fold}.json"

    def out_of_fold(self, fold: int) -> Path:
        """What the graders answered for the studies that a fold held out (training/data/out_of_fold.py)."""
        return self.profile / f"out_of_fold{fold}.parquet"

    @property
    def score(self) -> Path:
        """The pooled out-of-fold score."""
        return self.profile / "score.json"

    @property
    def validated(self) -> Path:
        """What the out-of-fold tables, scores and seconds were made of."""
        return self.profile / "validated.json"

    @property
    def seconds(self) -> Path:
        """What graders and sets of localisers cost a study, as measured while validating."""
        return self.profile / "seconds.json"

    def artefact(self, member: str, fold: int, below: Path | None = None) -> Artefact:
        """The finished artefact of a job, its file named relative to the profile's folder, or to that one.

        Raises RunsError where it cannot be read.
        """
        folder = self.job(member, fold)
        try:
            artefact = Artefact.model_validate_json((folder / "artefact.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunsError(
                f"{folder / 'artefact.json'} is damaged: make train-all trains this network again"
            ) from error
        file = (folder / artefact.weights.file).relative_to(below or self.profile).as_posix()
        return artefact.model_copy(update={"weights": artefact.weights.model_copy(update={"file": file})})


def image_digests(runs: Path) -> Path:
    """Where the digests of all series are written down, so that their files are read once."""
    return runs / "image_digests.json"


def is_finished(folder: Path, made_by: str) -> bool:
    """Whether a job's done.json says that exactly this was made, and it is there and whole.

    Weights are read only where they were touched after they were done.
    """
    done, weights = folder / "done.json", folder / "weights.ts"
    if read_object(done).get("digest") != made_by:
        return False
    try:
        known = Artefact.model_validate_json((folder / "artefact.json").read_text(encoding="utf-8")).weights
        if weights.stat().st_size != known.bytes:
            return False
        if weights.stat().st_mtime_ns <= done.stat().st_mtime_ns:
            return True
        with open(weights, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == known.sha256
    except (OSError, ValueError):
        return False


def remove_checkpoints(folder: Path) -> None:
    """Remove what only a job that resumes needs; it is as large as five times the weights."""
    for needless in folder.rglob(CHECKPOINT):
        needless.unlink(missing_ok=True)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or none that can be read: then it is made again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def git_commit() -> str:
    """The commit of the code, with + where files differ from it; 'unknown' outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


class UnusableRun(Exception):
    """A run that is missing, unfinished or not what it says, in one sentence."""


@dataclass(frozen=True)
class TrainedMember:
    """One finished network: what the recipe says of it, what its export says of it, and where its weights lie."""

    recipe: MemberRecipe
    artefact: Artefact
    weights: Path


def is_done(folder: Path) -> bool:
    """Whether a network was trained to its end, with whatever state of its recipe."""
    return (folder / "done.json").is_file()


def read_run(folder: Path, recipe: MemberRecipe) -> TrainedMember | None:
    """A finished run, or None where it is not finished or was made by another state of the recipe.

    Raises UnusableRun where the run says that it is done and is not.
    """
    if not is_done(folder):
        return None
    try:
        artefact = Artefact.model_validate_json((folder / "artefact.json").read_bytes())
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UnusableRun(f"{folder} says that it is done, but cannot be read: {reason}") from error
    if artefact.provenance.resolved_recipe != recipe.model_dump(mode="json"):
        return None
    weights = folder / artefact.weights.file
    if not weights.is_file():
        raise UnusableRun(f"{folder} says that it is done, but has no {artefact.weights.file}")
    return TrainedMember(recipe, artefact, weights)


def route_of(name: str, artefacts: Sequence[Artefact], members: Sequence[MemberRecipe]) -> Route:
    """One route of all localisers and all graders, these with the weights of their recipe."""
    pairs = [(artefact.member, member.weight) for artefact, member in zip(artefacts, members, strict=True)]
    return Route(
        name=name,
        localisers=tuple(one.name for one, _ in pairs if one.role == "localiser"),
        graders=tuple(GraderWeight(name=one.name, weight=weight) for one, weight in pairs if one.role == "grader"),
    )
