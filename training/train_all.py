"""All networks of one or several recipes: cache → localisers → what they miss by → graders → out-of-fold score.

    python -m training.train_all --data DIR --runs RUNS [--recipes a b] [--profile smoke|bench|full] [--folds 0 1]
                                 [--coordinates DIR] [--labels FILE]

A finished job is not done again unless its recipe, its data or what it was made from changed; an interrupted one
resumes at its last epoch.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels.lumbar.submission import replace_json
from training import networks
from training.data.cache import Cache, CacheError, build_cache, requests_of
from training.data.external import LevelImages, read_pretraining, with_improved_coordinates
from training.data.external_samples import pretrainable
from training.data.folds import FoldsError, read_or_make_folds
from training.data.opinions import Opinions, read_opinions
from training.data.shape import fit_shape
from training.data.tables import Tables, TablesError, read_tables
from training.evaluation.out_of_fold import OutOfFoldError
from training.evaluation.priors import weighted_priors
from training.evaluation.validate import localiser_errors, validate
from training.networks import NetworkError
from training.recipe import MemberRecipe, Profile, Recipe, RecipeError, load_recipe
from training.runs import RunFolder, git_commit
from training.train import Job, TrainingError, train

RECIPES = Path(__file__).parent / "recipes"
log = logging.getLogger("train-all")


@dataclass(frozen=True)
class Plan:
    """One recipe on one data set."""

    recipe: Recipe
    folder: RunFolder
    data: Path
    tables: Tables
    folds: dict[str, int]
    cache: Cache
    device: torch.device
    commit: str
    images: LevelImages | None = None
    opinions: Opinions | None = None

    def train(self, member: MemberRecipe, fold: int, jitter_mm: dict[str, float]) -> None:
        """One job, if it is not finished already."""
        shared = (self.folder, self.tables, self.folds, self.cache)
        train(Job(self.recipe, member, fold, *shared, jitter_mm, self.device, self.commit, self.images, self.opinions))

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
) -> None:
    """Everything of one recipe, up to its out-of-fold score; or its localisers and what they miss by.

    `coordinates`: the folder of published coordinates (training/data/external.py), if there is one.  `labels`: what an
    earlier run answered out of fold, by which labels are corrected where the recipe asks for it.
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
    for member in members:  # a name or option that is wrong is found before hours of decoding
        networks.check(member)
    cache = build_cache(data, tables, requests_of(members), runs / "cache", jobs)
    shape = fit_shape(list(cache.points.values()))
    replace_json(folder.shape, None if shape is None else shape.model_dump(mode="json"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = Plan(recipe, folder, data, tables, assignment, cache, device, git_commit(), images, opinions)
    localisers = [member for member in members if member.member.role == "localiser"]
    graders = [member for member in members if member.member.role == "grader"]
    log.info("%s/%s: %d networks in folds %s on %s", recipe.name, recipe.profile, len(members), list(folds), device)
    for fold in folds:
        for member in localisers:
            plan.train(member, fold, {})
        errors = localiser_errors(folder, localisers, data, tables, plan.held_out(fold), cache.landmarks, fold)
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
    return read_opinions(labels) if asking and labels is not None else None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.  Errors in data or recipe end it with one sentence."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(prog="training.train_all", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder in the competition's layout")
    parser.add_argument("--runs", type=Path, required=True, help="where weights, curves and scores go")
    parser.add_argument("--recipes", nargs="*", default=[], help="names of training/recipes; default: all")
    parser.add_argument("--profile", choices=["smoke", "bench", "full"], default="full")
    parser.add_argument("--folds", nargs="*", type=int, default=[], help="default: those of the recipe")
    parser.add_argument("--coordinates", type=Path, help="a folder of published coordinates, for better points")
    parser.add_argument("--labels", type=Path, help="an earlier run's out-of-fold tables, or one, to correct labels by")
    parser.add_argument("--localisers-only", action="store_true", help="leave the graders out")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that decode")
    options = parser.parse_args(argv)
    names = options.recipes or sorted(path.stem for path in RECIPES.glob("*.yaml"))
    try:
        for name in names:
            recipe = load_named(name, options.profile)
            folds = options.folds or recipe.train_folds or range(recipe.folds)
            if options.jobs < 1:
                raise RecipeError(f"JOBS is the number of processes that decode, 1 or more, not {options.jobs}")
            wrong = [fold for fold in folds if fold not in range(recipe.folds)]
            if wrong:
                raise RecipeError(f"{name} has folds 0 to {recipe.folds - 1}; {wrong} is none of them")
            where = (options.data, options.runs, list(folds), options.jobs)
            train_recipe(recipe, *where, options.localisers_only, options.coordinates, options.labels)
    except (RecipeError, TablesError, FoldsError, CacheError, NetworkError, TrainingError, OutOfFoldError) as error:
        print(f"train-all stopped: {error}", file=sys.stderr)
        return 1
    return 0


def load_named(name: str, profile: Profile) -> Recipe:
    """A recipe of this project by its name."""
    path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = " ".join(sorted(other.stem for other in RECIPES.glob("*.yaml")))
        raise RecipeError(f"there is no recipe '{name}'; several are named with spaces between, and there are: {known}")
    return load_recipe(path, profile)


if __name__ == "__main__":
    sys.exit(main())
