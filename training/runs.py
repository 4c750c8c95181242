"""Files of a run: where they are, and whether one is finished."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.lumbar.manifest import Artefact, GraderWeight, Route
from kernels.lumbar.run.submission import replace_json
from training.digests import file_digest
from training.recipe_schema.schema import MemberRecipe, Recipe

# Files of one network's folder, in the order in which they are written.
BEGUN, RESOLVED_RECIPE, CHECKPOINT, HISTORY = "begun.json", "recipe.resolved.yaml", "checkpoint.pt", "history.csv"
CURVES, WEIGHTS, ARTEFACT, DONE = "curves.png", "weights.ts", "artefact.json", "done.json"
# Its subfolders: fits before and after the main one.
PRETRAINING, SECOND = "pretraining", "second_step"
# Of a recipe, of one of its profiles, and of all runs.
FOLDS, PRIORS, SECONDS, ENSEMBLE = "folds.csv", "priors.json", "seconds.json", "ensemble.json"
LOCALISER_ERRORS, OUT_OF_FOLD = "localiser_errors_fold", "out_of_fold"
# Of a localiser in one fold.
SOURCE_ERRORS = "source_errors.json"
OUT_OF_FOLD_TABLES = f"{OUT_OF_FOLD}*.parquet"


class RunsError(ValueError):
    """A file of a finished run that cannot be used, with the remedy."""


@dataclass(frozen=True)
class RunFolder:
    """RUNS/<recipe>: folds.csv, priors.json and, for each profile, a folder for each network in each fold."""

    runs: Path
    recipe: Recipe

    @property
    def folds(self) -> Path:
        """Study → fold, shared by both stages and all profiles; with another recipe's localisers that recipe's file."""
        return self.runs / self.recipe.localisers_owner / FOLDS

    @property
    def own_folds(self) -> Path:
        """Where a fold table lies that was made for this recipe alone."""
        return self.runs / self.recipe.name / FOLDS

    @property
    def priors(self) -> Path:
        """Priors of the training labels, row → probabilities."""
        return self.runs / self.recipe.name / PRIORS

    @property
    def shape(self) -> Path:
        """Shape model of the training studies' landmarks, or null where too few are annotated."""
        return self.runs / self.recipe.name / "shape.json"

    @property
    def profile(self) -> Path:
        """Everything of one profile."""
        return self.runs / self.recipe.name / self.recipe.profile

    @property
    def root(self) -> Path:
        """The folder from which artefacts name their files: the profile's, or RUNS with another recipe's localisers."""
        return self.profile if self.recipe.localisers_of is None else self.runs

    def network_folder(self, member: str, fold: int) -> Path:
        """The folder of one network in one fold; of another recipe's localiser, in that recipe's folder."""
        return self.runs / self.recipe.owner_of(member) / self.recipe.profile / member / f"fold{fold}"

    def finished(self, fold: int, role: str | None = None) -> tuple[list[MemberRecipe], list[MemberRecipe]]:
        """The recipe's networks [of one role] in a fold: those finished by this state of it, and the others.

        Raises UnusableRun for one that is marked as done and lacks its files.
        """
        members = [one for one in self.recipe.members() if one.is_trained_in(fold) and role in (None, one.member.role)]
        done = [one for one in members if read_run(self.network_folder(one.member.name, fold), one)]
        return done, [one for one in members if one not in done]

    def localiser_errors(self, fold: int) -> Path:
        """Out-of-fold localisation error (mm) per series kind."""
        return self.profile / f"{LOCALISER_ERRORS}{fold}.json"

    def source_errors(self, member: str, fold: int) -> Path:
        """Out-of-fold error (mm) of the landmarks that a localiser starts from."""
        return self.network_folder(member, fold) / SOURCE_ERRORS

    def out_of_fold(self, fold: int) -> Path:
        """Out-of-fold predictions of a fold's graders (training/data/out_of_fold.py)."""
        return self.profile / f"{OUT_OF_FOLD}{fold}.parquet"

    @property
    def score(self) -> Path:
        """The pooled out-of-fold score."""
        return self.profile / "score.json"

    @property
    def validated(self) -> Path:
        """Digest of what the out-of-fold tables, scores and seconds depend on."""
        return self.profile / "validated.json"

    @property
    def seconds(self) -> Path:
        """Seconds a study of graders and of sets of localisers, measured during validation."""
        return self.profile / SECONDS

    @property
    def domain(self) -> Path:
        """What validation saw out of fold (training/evaluation/domain.py)."""
        return self.profile / "domain.json"

    def artefact(self, member: str, fold: int, below: Path | None = None) -> Artefact:
        """The artefact of a finished network, its file named relative to `below` (default: `root`).

        Raises RunsError where it cannot be read.
        """
        folder = self.network_folder(member, fold)
        try:
            artefact = read_artefact(folder)
        except ValueError as error:
            raise RunsError(f"{folder / ARTEFACT} is damaged: make train-all trains this network again") from error
        file = (folder / artefact.weights.file).relative_to(below or self.root).as_posix()
        return artefact.model_copy(update={"weights": artefact.weights.model_copy(update={"file": file})})

    def update_artefact(self, member: str, fold: int, **changes: Any) -> None:
        """Replace fields of a finished network's artefact.json."""
        folder = self.network_folder(member, fold)
        replace_json(folder / ARTEFACT, read_artefact(folder).model_copy(update=changes).model_dump(mode="json"))


def read_artefact(folder: Path) -> Artefact:
    """artefact.json of a network.  Raises OSError, ValueError."""
    return Artefact.model_validate_json((folder / ARTEFACT).read_text(encoding="utf-8"))


def cache_of(runs: Path) -> Path:
    """Folder of the decoded stacks, unless another is given."""
    return runs / "cache"


def image_digests(runs: Path) -> Path:
    """Cache of the digests of all series, so that their files are read once."""
    return runs / "image_digests.json"


def is_same_training(mark: Path, made_by: str, held_out: str | None) -> bool:
    """Whether begun.json or done.json is of a training with this digest that held out these studies.

    `held_out`: digest of the studies; None = not known.  Earlier trainings did not keep it.
    """
    kept = read_object(mark)
    return kept.get("digest") == made_by and held_out in (None, kept.get("held_out", held_out))


def is_finished(folder: Path, made_by: str, held_out: str | None) -> bool:
    """Whether done.json is of this training and the weights are complete; they are hashed only if newer than it."""
    done, weights = folder / DONE, folder / WEIGHTS
    if not is_same_training(done, made_by, held_out):
        return False
    try:
        known = read_artefact(folder).weights
        if weights.stat().st_size != known.bytes:
            return False
        if weights.stat().st_mtime_ns <= done.stat().st_mtime_ns:
            return True
        return file_digest(weights) == known.sha256
    except (OSError, ValueError):
        return False


def remove_checkpoints(folder: Path) -> None:
    """Remove checkpoints, which only a training that resumes needs; each is as large as five times the weights."""
    for needless in folder.rglob(CHECKPOINT):
        needless.unlink(missing_ok=True)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty for a missing or damaged file, which is then made again."""
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
    """A run that is missing, unfinished or inconsistent, in one sentence."""


@dataclass(frozen=True)
class TrainedMember:
    """One finished network: its recipe, its exported artefact, and its file of weights."""

    recipe: MemberRecipe
    artefact: Artefact
    weights: Path


def is_done(folder: Path) -> bool:
    """Whether a network was trained to its end, with any state of its recipe."""
    return (folder / DONE).is_file()


def read_run(folder: Path, recipe: MemberRecipe) -> TrainedMember | None:
    """A finished run; None if it is unfinished or was made by another state of the recipe.

    Raises UnusableRun for a run that is marked as done and lacks its files.
    """
    if not is_done(folder):
        return None
    try:
        artefact = read_artefact(folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UnusableRun(f"{folder} is marked as done, but cannot be read: {reason}") from error
    if artefact.provenance.resolved_recipe != recipe.model_dump(mode="json"):
        return None
    weights = folder / artefact.weights.file
    if not weights.is_file():
        raise UnusableRun(f"{folder} is marked as done, but has no {artefact.weights.file}")
    return TrainedMember(recipe, artefact, weights)


def routes_of(recipe: Recipe, artefacts: Sequence[Artefact], members: Sequence[MemberRecipe]) -> tuple[Route, ...]:
    """Routes of a recipe's networks: of all localisers, for graders in no route of its own, then its own routes.

    A grader's weight is divided evenly among its routes.  Localisers without graders make one route of all.  Raises
    UnusableRun for a route of which no localiser is there.
    """
    parts = [recipe.routes_of(member.member.name) for member in members]
    found = []
    for route in ("", *recipe.routes):
        its = [place for place, routes in enumerate(parts) if route in routes]
        name = f"{recipe.name}_at_{route}" if route else recipe.name
        own = route_of(name, [artefacts[place] for place in its], [members[place] for place in its])
        if own.graders and not own.localisers:
            raise UnusableRun(f"{recipe.name}: no localiser of its route {route or 'of all'} is finished")
        counts = [len(parts[place]) for place in its if members[place].member.role == "grader"]
        if own.graders:
            found.append(own.model_copy(update={"graders": tuple(map(_divided, own.graders, counts))}))
    return tuple(found) or (route_of(recipe.name, artefacts, members),)


def _divided(grader: GraderWeight, count: int) -> GraderWeight:
    return GraderWeight(name=grader.name, weight={group: one / count for group, one in grader.weight.items()})


def route_of(name: str, artefacts: Sequence[Artefact], members: Sequence[MemberRecipe]) -> Route:
    """One route of all localisers and all graders, with the graders' weights of the recipe."""
    pairs = [(artefact.member, member.weight) for artefact, member in zip(artefacts, members, strict=True)]
    return Route(
        name=name,
        localisers=tuple(one.name for one, _ in pairs if one.role == "localiser"),
        graders=tuple(GraderWeight(name=one.name, weight=weight) for one, weight in pairs if one.role == "grader"),
    )
