"""All networks of some recipes: cache → localisers → their out-of-fold error → graders → out-of-fold score.

    python -m training.train_all --data DIR --runs RUNS [--recipes a b.yaml] [--profile smoke|bench|full] [--folds 0 1]
                                 [--coordinates DIR] [--labels RUN] [--start RUNS|PACKAGE] [--cache DIR]
                                 [--time-limit SECONDS]

A finished network is trained again only if its recipe, its data or its inputs changed; an interrupted one resumes at
its last epoch.  Exit code 3: the time limit was reached, and the same command resumes.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from kernels.commands import ends_with_a_sentence
from kernels.locks import BusyError, alone
from kernels.profiles import Profile
from training.data.cache.stack_cache import CacheError
from training.data.folds import FoldsError
from training.data.label_correction import check_coverage, read_labels
from training.data.out_of_fold import OutOfFoldError
from training.data.tables import TablesError, read_tables
from training.fitting import FitError
from training.fitting.preflight import check_recipes
from training.fitting.start_weights import check_start
from training.fitting.time_limit import OutOfTime, StoppedBySignal, TimeLimit
from training.networks import NetworkError
from training.recipe_schema.load import add_order, folds_of, load_named, members_of, names_of
from training.recipe_schema.order import localisers_in_order
from training.recipe_schema.schema import Recipe, RecipeError
from training.runs import RunFolder, RunsError, is_done
from training.steps import (
    TrainingOptions,
    begin,
    measure_localisers,
    measure_sources,
    prepare,
    score_folds,
    train_member,
)
from training.train_network import TrainingError

OUT_OF_TIME = 3
# Errors of a step whose message is a complete sentence.
STEP_ERRORS = (RecipeError, TablesError, FoldsError, CacheError, TrainingError, OutOfFoldError, RunsError)
# At most so many unfinished networks are named.
SHOWN = 8
log = logging.getLogger("train-all")


def train_recipe(
    recipe: Recipe, options: TrainingOptions, folds: Sequence[int], clock: TimeLimit | None = None
) -> None:
    """All steps of a recipe up to its out-of-fold score; with `localisers_only`, up to their localisation error.

    Raises OutOfTime between two epochs.  The recipe's networks and losses are checked before, for all recipes at once
    (fitting/preflight.py).
    """
    context = begin(recipe, options, clock)
    cache = context.open_cache(check_pixels=True)
    prepare(context, cache.points)
    graders = [member for member in context.members if member.member.role == "grader"]
    started = (recipe.name, recipe.profile, len(context.members), ", ".join(map(str, folds)), context.device)
    log.info("%s/%s: %d networks in folds %s on %s", *started)
    for fold in folds:
        for member in localisers_in_order(recipe):
            sources = measure_sources(context, member, fold, lambda: cache.landmarks)
            train_member(context, member, fold, lambda: cache, sources)
        errors = measure_localisers(context, fold, lambda: cache.landmarks)
        for member in graders:
            if member.is_trained_in(fold):
                train_member(context, member, fold, lambda: cache, errors)
    if graders:
        score_folds(context, folds)


@ends_with_a_sentence("train-all stopped", *STEP_ERRORS, FitError, NetworkError, BusyError)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line.  Errors in data or recipe end it with one sentence."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(prog="training.train_all", description=__doc__)
    add_order(parser)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that decode")
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds after which no epoch is begun")
    options = parser.parse_args(argv)
    clock = TimeLimit(options.time_limit)
    names = names_of(options.recipes)
    try:
        if options.jobs < 1:
            raise RecipeError(f"JOBS is the number of processes that decode, 1 or more, not {options.jobs}")
        chosen = [load_named(name, options.profile) for name in names]
        folds = [folds_of(recipe, options.folds) for recipe in chosen]
        tables = read_tables(options.data)
        if options.labels is not None:
            check_coverage(read_labels(options.labels), tables.labels)
        check_recipes(chosen, options.localisers_only)
        check_start(chosen, folds, options.start, options.localisers_only)
        with alone(options.runs):
            values = {field.name: getattr(options, field.name) for field in fields(TrainingOptions)}
            training_options = TrainingOptions(**values)
            for recipe, recipe_folds in zip(chosen, folds, strict=True):
                train_recipe(recipe, training_options, recipe_folds, clock)
    except OutOfTime as stop:
        done, left = progress(options.runs, names, options.profile, options.folds, options.localisers_only)
        reason = stop if isinstance(stop, StoppedBySignal) else "stopped at its time limit"
        print(
            f"train-all {reason}: {len(done)} of {len(done) + len(left)} networks are finished; "
            f"left are {', '.join(left[:SHOWN])}{' ...' if len(left) > SHOWN else ''}; "
            "the same command resumes where it stopped"
        )
        return OUT_OF_TIME
    return 0


def progress(
    runs: Path, names: Sequence[str], profile: Profile, chosen: Sequence[int], localisers_only: bool = False
) -> tuple[list[str], list[str]]:
    """Finished and unfinished networks of some recipes, as paths relative to `runs`."""
    done: list[str] = []
    left: list[str] = []
    for recipe in [load_named(name, profile) for name in names]:
        for fold in folds_of(recipe, chosen):
            for entry in members_of(recipe, localisers_only):
                if entry.is_trained_in(fold):
                    folder = RunFolder(runs, recipe).network_folder(entry.member.name, fold)
                    (done if is_done(folder) else left).append(str(folder.relative_to(runs)))
    return done, left


if __name__ == "__main__":
    sys.exit(main())
