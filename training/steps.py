"""The steps of a recipe, each of which does nothing where exactly this is done already.

prepare → train localisers → what they miss by → train graders → validate.  training/train_all.py takes them one after
the other in one process, training/workflow each in a job of its own: what one began the other finishes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kernels.lumbar.run.submission import replace_json
from training.data.cache.cache_sources import images_digest
from training.data.cache.crop_cache import Cache, build_cache, requests_of
from training.data.cache.crop_groups import CropGroups
from training.data.external import LevelImages, read_pretraining, with_improved_coordinates
from training.data.fit_spine_shape import fit_shape
from training.data.folds import read_or_make_folds
from training.data.label_correction import Opinions, read_opinions
from training.data.samples.external_samples import pretrainable
from training.data.tables import Tables, read_tables
from training.digests import fingerprint_of
from training.evaluation.landmark_errors import LandmarkError
from training.evaluation.metric import Score
from training.evaluation.training_priors import weighted_priors
from training.evaluation.validate import localiser_errors, validate
from training.fitting.time_limit import TimeLimit
from training.recipe.schema import MemberRecipe, Recipe, RecipeError
from training.recipe.selection import members_of
from training.runs import RunFolder, git_commit, image_digests
from training.train import Job, train

log = logging.getLogger("train-all")


@dataclass(frozen=True)
class Source:
    """What a training is made of and where it lies, the same for all recipes."""

    data: Path
    runs: Path
    jobs: int = 1
    """Processes that decode."""
    localisers_only: bool = False
    coordinates: Path | None = None
    """The folder of published coordinates (training/data/external.py), if there is one."""
    labels: Path | None = None
    """What an earlier run answered out of fold, by which labels are corrected where a recipe asks for it."""
    cache: Path | None = None
    """Where crops are kept; default: RUNS/cache."""
    cache_gb: float = math.inf
    """Where crops need more room, some are made when others are done with."""

    @property
    def crops(self) -> Path:
        """Where crops are kept."""
        return self.cache or self.runs / "cache"


@dataclass(frozen=True)
class Work:
    """One recipe on one data set: what its steps need."""

    recipe: Recipe
    source: Source
    folder: RunFolder
    tables: Tables
    folds: dict[str, int]
    device: torch.device
    commit: str
    images: LevelImages | None = None
    opinions: Opinions | None = None
    clock: TimeLimit | None = None

    @property
    def members(self) -> list[MemberRecipe]:
        """The networks that are to be trained."""
        return members_of(self.recipe, self.source.localisers_only)

    @property
    def localisers(self) -> list[MemberRecipe]:
        """Those that find landmarks."""
        return [one for one in self.members if one.member.role == "localiser"]

    def held_out(self, fold: int) -> list[str]:
        """The studies of a fold."""
        return [study for study, its_fold in self.folds.items() if its_fold == fold]

    def make_crops(self, members: Sequence[MemberRecipe]) -> Cache:
        """The crops of these networks, made where they are not there yet."""
        source = self.source
        return build_cache(source.data, self.tables, requests_of(members), source.crops, source.jobs)

    def crop_groups(self) -> CropGroups:
        """The crops of all networks, as many at a time as there is room for."""
        limit_bytes = self.source.cache_gb * 1e9
        return CropGroups(self.members, len(self.tables.labels), self.source.crops, limit_bytes, self.make_crops)


def begin(recipe: Recipe, source: Source, clock: TimeLimit | None = None, fingerprint: str | None = None) -> Work:
    """Read what all steps of a recipe need, and make its folds if there are none yet.

    `fingerprint`: that of the tables with improved coordinates, where these need not be read again, as the crops are
    made.  Raises TablesError, FoldsError, RecipeError, OutOfFoldError.
    """
    folder = RunFolder(source.runs, recipe)
    tables = read_tables(source.data)
    if fingerprint is not None:
        tables = replace(tables, fingerprint=fingerprint)
    else:
        files = images_digest(source.data, tables, image_digests(source.runs))
        tables = replace(tables, fingerprint=fingerprint_of(tables.fingerprint, files))
    if fingerprint is None and source.coordinates is not None:
        tables = with_improved_coordinates(source.coordinates, source.data, tables)
    images, opinions = images_for(recipe, source.coordinates), opinions_for(recipe, source.labels)
    folds = read_or_make_folds(folder.folds, tables, recipe.folds, recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Work(recipe, source, folder, tables, folds, device, git_commit(), images, opinions, clock)


def prepare(work: Work, points: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write the priors and the landmarks' shape; `points`: those of the crops, which are made by now."""
    replace_json(work.folder.priors, weighted_priors(work.tables.labels))
    shape = fit_shape(list(points.values()))
    replace_json(work.folder.shape, None if shape is None else shape.model_dump(mode="json"))


def train_member(
    work: Work,
    member: MemberRecipe,
    fold: int,
    crops: Callable[[MemberRecipe], Cache],
    errors: Mapping[str, LandmarkError] | None = None,
) -> Job:
    """Train one network in one fold; `errors`: of a grader, what the fold's localisers miss by.

    Raises TrainingError, and OutOfTime between two epochs, when the clock says so.
    """
    jitter_mm = {kind: error.sigma_mm for kind, error in (errors or {}).items()}
    shared = (work.folder, work.tables, work.folds, partial(crops, member))
    given = (work.images, work.opinions, work.clock)
    job = Job(work.recipe, member, fold, *shared, jitter_mm, work.device, work.commit, *given)
    train(job)
    return job


def missed_by(
    work: Work, fold: int, landmarks: Callable[[], Mapping[str, Mapping[str, np.ndarray]]]
) -> dict[str, LandmarkError]:
    """What a fold's localisers miss by on the studies that they never saw; `landmarks`: as annotated."""
    held_out = work.held_out(fold)
    data = (work.source.data, work.tables, held_out, landmarks())
    errors = localiser_errors(work.folder, work.localisers, *data, fold)
    for kind, error in errors.items():
        found = (fold, kind, error.median_mm, error.p95_mm)
        log.info("fold %d: %s located within %.1f mm (median), %.1f mm (95 %%)", *found)
    return errors


def score_folds(work: Work, folds: Sequence[int]) -> Score:
    """The out-of-fold score of the trained folds, with the answers and seconds that it is made of."""
    score = validate(work.folder, work.members, work.source.data, work.tables, work.folds, folds)
    log.info("%s/%s out of fold: %s", work.recipe.name, work.recipe.profile, score)
    return score


def images_for(recipe: Recipe, coordinates: Path | None) -> LevelImages | None:
    """The published images, where a network of the recipe is to be pretrained on them.  Raises RecipeError."""
    asking = [one.member for one in recipe.members() if one.fitting.pretraining is not None]
    try:
        for member in asking:
            pretrainable(member)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if asking and coordinates is None:
        names = ", ".join(member.name for member in asking)
        log.warning("no pretraining of %s: name the published coordinates with COORDINATES=", names)
    return read_pretraining(coordinates) if asking and coordinates is not None else None


def opinions_for(recipe: Recipe, labels: Path | None) -> Opinions | None:
    """What an earlier run answered out of fold, where a network of the recipe wants its labels corrected by it."""
    asking = [one.member.name for one in recipe.members() if one.fitting.labels.any]
    if asking and labels is None:
        log.warning("the labels of %s stay as they are: name an earlier run's answers with LABELS=", ", ".join(asking))
    if labels is not None and not asking:
        log.warning("LABELS= changes nothing in %s: none of its networks asks for corrected labels", recipe.name)
    return read_opinions(labels) if asking and labels is not None else None
