"""All networks of one or several recipes: cache → localisers → what they miss by → graders → out-of-fold score.

    python -m training.train_all --data DIR --runs RUNS [--recipes a b.yaml] [--profile smoke|bench|full] [--folds 0 1]
                                 [--coordinates DIR] [--labels RUN] [--cache DIR] [--cache-gb N]
                                 [--time-limit SECONDS]

A finished job is not done again unless its recipe, its data or what it was made from changed; an interrupted one
resumes at its last epoch.  Exit code 3: the time limit came first, and the same command goes on.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from kernels.lumbar.submission import replace_json
from training.checks import check_recipes
from training.clock import Clock, OutOfTime
from training.data.cache import Cache, CacheError, build_cache, requests_of
from training.data.crop_groups import CropGroups
from training.data.external import LevelImages, read_pretraining, with_improved_coordinates
from training.data.external_samples import pretrainable
from training.data.folds import FoldsError, read_or_make_folds
from training.data.opinions import Opinions, check_coverage, read_opinions
from training.data.shape import fit_shape
from training.data.tables import Tables, TablesError, read_tables
from training.evaluation.out_of_fold import OutOfFoldError
from training.evaluation.priors import weighted_priors
from training.evaluation.validate import localiser_errors, validate
from training.networks import NetworkError
from training.recipe import MemberRecipe, Profile, Recipe, RecipeError
from training.recipes import load_named, names_of
from training.runs import RunFolder, git_commit
from training.train import Job, TrainingError, train

OUT_OF_TIME = 3
# So many of the networks that are left are named.
SHOWN = 8
log = logging.getLogger("train-all")


@dataclass(frozen=True)
class Plan:
    """One recipe on one data set."""

    recipe: Recipe
    folder: RunFolder
    data: Path
    tables: Tables
    folds: dict[str, int]
    crops: CropGroups
    device: torch.device
    commit: str
    images: LevelImages | None = None
    opinions: Opinions | None = None
    clock: Clock | None = None

    def train(self, member: MemberRecipe, fold: int, jitter_mm: dict[str, float]) -> None:
        """One job, if it is not finished already."""
        shared = (self.folder, self.tables, self.folds, partial(self.crops.of, member))
        given = (self.images, self.opinions, self.clock)
        train(Job(self.recipe, member, fold, *shared, jitter_mm, self.device, self.commit, *given))

    def held_out(self, fold: int) -> list[str]:
        """The studies of a fold."""
        return [study for study, its_fold in self.folds.items() if its_fold == fold]


def train_recipe(
    recipe: Recipe,
    data: Path,
    runs: Path,
    folds: Sequence[int],
    jobs: int,
    localisers_only: bool = False,
    coordinates: Path | None = None,
    labels: Path | None = None,
    cache: Path | None = None,
    clock: Clock | None = None,
    cache_gb: float = math.inf,
) -> None:
    """Everything of one recipe, up to its out-of-fold score; or its localisers and what they miss by.

    `coordinates`: the folder of published coordinates (training/data/external.py), if there is one.  `labels`: what an
    earlier run answered out of fold, by which labels are corrected where the recipe asks for it.  `cache`: where crops
    are kept; default: RUNS/cache; `cache_gb`: where they need more room, some are made when others are done with.
    Raises OutOfTime between two epochs, when the clock says so.  What the recipe asks of networks is not checked here:
    training.checks does it for all recipes before the first one is trained.
    """
    folder = RunFolder(runs, recipe)
    tables = read_tables(data)
    if coordinates is not None:
        tables = with_improved_coordinates(coordinates, data, tables)
    images = images_for(recipe, coordinates)
    opinions = opinions_for(recipe, labels)
    assignment = read_or_make_folds(folder.folds, tables, recipe.folds, recipe.seed)
    replace_json(folder.priors, weighted_priors(tables.labels))
    members = [one for one in recipe.members() if one.member.role == "localiser" or not localisers_only]
    kept = cache or runs / "cache"
    make = partial(_make_crops, data, tables, kept, jobs)
    crops = CropGroups(members, len(tables.labels), kept, cache_gb * 1e9, make)
    shape = fit_shape(list(crops.points.values()))
    replace_json(folder.shape, None if shape is None else shape.model_dump(mode="json"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = Plan(recipe, folder, data, tables, assignment, crops, device, git_commit(), images, opinions, clock)
    localisers = [member for member in members if member.member.role == "localiser"]
    graders = [member for member in members if member.member.role == "grader"]
    log.info("%s/%s: %d networks in folds %s on %s", recipe.name, recipe.profile, len(members), list(folds), device)
    for fold in folds:
        for member in localisers:
            plan.train(member, fold, {})
        errors = localiser_errors(folder, localisers, data, tables, plan.held_out(fold), crops.landmarks, fold)
        for kind, error in errors.items():
            found = (fold, kind, error.median_mm, error.p95_mm)
            log.info("fold %d: %s located within %.1f mm (median), %.1f mm (95 %%)", *found)
        jitter_mm = {kind: error.sigma_mm for kind, error in errors.items()}
        for member in graders:
            if member.is_trained_in(fold):
                plan.train(member, fold, jitter_mm)
    if not graders:
        return
    score = validate(folder, members, data, tables, assignment, folds)
    log.info("%s/%s out of fold: %s", recipe.name, recipe.profile, score)


def _make_crops(data: Path, tables: Tables, folder: Path, jobs: int, members: Sequence[MemberRecipe]) -> Cache:
    return build_cache(data, tables, requests_of(members), folder, jobs)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.  Errors in data or recipe end it with one sentence."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(prog="training.train_all", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder in the competition's layout")
    parser.add_argument("--runs", type=Path, required=True, help="where weights, curves and scores go")
    parser.add_argument("--recipes", nargs="*", default=[], help="names of training/recipes, or YAML files")
    parser.add_argument("--profile", choices=["smoke", "bench", "full"], default="full")
    parser.add_argument("--folds", nargs="*", type=int, default=[], help="default: those of the recipe")
    parser.add_argument("--coordinates", type=Path, help="a folder of published coordinates, for better points")
    parser.add_argument("--labels", type=Path, help="RUNS/<recipe>/<profile> of an earlier run, to correct labels by")
    parser.add_argument("--localisers-only", action="store_true", help="leave the graders out")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that decode")
    parser.add_argument("--cache", type=Path, help="where crops are kept; default: RUNS/cache")
    parser.add_argument("--cache-gb", type=float, default=math.inf, help="room for crops; default: what the disk has")
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds after which no epoch is begun")
    options = parser.parse_args(argv)
    clock = Clock(options.time_limit)
    names = names_of(options.recipes)
    try:
        if options.jobs < 1:
            raise RecipeError(f"JOBS is the number of processes that decode, 1 or more, not {options.jobs}")
        chosen = [load_named(name, options.profile) for name in names]
        folds = [folds_of(recipe, options.folds) for recipe in chosen]
        studies = list(read_tables(options.data).labels.index)
        if options.labels is not None:
            check_coverage(read_opinions(options.labels), studies)
        check_recipes(chosen, options.localisers_only)
        for recipe, its_folds in zip(chosen, folds, strict=True):
            where = (options.data, options.runs, its_folds, options.jobs)
            helps = (options.coordinates, options.labels, options.cache)
            train_recipe(recipe, *where, options.localisers_only, *helps, clock, options.cache_gb)
    except OutOfTime:
        done, left = progress(options.runs, names, options.profile, options.folds, options.localisers_only)
        print(
            f"train-all stopped at its time limit: {len(done)} of {len(done) + len(left)} networks are finished; "
            f"left are {', '.join(left[:SHOWN])}{' ...' if len(left) > SHOWN else ''}; "
            "the same command goes on where it stopped"
        )
        return OUT_OF_TIME
    except (RecipeError, TablesError, FoldsError, CacheError, NetworkError, TrainingError, OutOfFoldError) as error:
        print(f"train-all stopped: {error}", file=sys.stderr)
        return 1
    return 0


def folds_of(recipe: Recipe, asked: Sequence[int]) -> list[int]:
    """The folds to train: those asked for, else the recipe's own.  Raises RecipeError for one that it has not."""
    wrong = [fold for fold in asked if fold not in range(recipe.folds)]
    if wrong:
        raise RecipeError(f"{recipe.name} has folds 0 to {recipe.folds - 1}; {wrong} is none of them")
    return list(asked or recipe.train_folds or range(recipe.folds))


def progress(
    runs: Path, names: Sequence[str], profile: Profile, asked: Sequence[int], localisers_only: bool = False
) -> tuple[list[str], list[str]]:
    """The networks of some recipes that are finished, and those that are left, as paths below `runs`."""
    done: list[str] = []
    left: list[str] = []
    for recipe in [load_named(name, profile) for name in names]:
        for fold in folds_of(recipe, asked):
            for entry in recipe.members():
                if entry.is_trained_in(fold) and not (localisers_only and entry.member.role == "grader"):
                    job = RunFolder(runs, recipe).job(entry.member.name, fold)
                    (done if (job / "done.json").is_file() else left).append(str(job.relative_to(runs)))
    return done, left


if __name__ == "__main__":
    sys.exit(main())
