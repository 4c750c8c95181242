"""The steps of a recipe; each does nothing if its result is up to date.

prepare → train localisers → measure their out-of-fold error → train graders → validate; localisers that start from
landmarks of others come after the error of these is measured.  training/train_all.py runs them in one process,
training/workflow each as a job of its own, and each resumes what the other began.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kernels.lumbar.networks.devices import default_device
from kernels.lumbar.run.submission import replace_json
from training.data.cache.cache_sources import images_digest
from training.data.cache.stack_cache import StackCache
from training.data.external import LevelImages, read_pretraining, with_improved_coordinates
from training.data.fit_spine_shape import fit_shape
from training.data.folds import read_shared_folds
from training.data.label_correction import EarlierLabels, read_labels
from training.data.label_points import report_label_points
from training.data.label_table import is_label_table
from training.data.samples.external_samples import pretrainable
from training.data.tables import read_tables
from training.data.training_priors import weighted_priors
from training.digests import fingerprint_of
from training.evaluation.landmark_errors import LandmarkError
from training.evaluation.metric import Score
from training.evaluation.validate import cautions, localiser_errors, source_errors, validate
from training.fitting.time_limit import TimeLimit
from training.recipe_schema.order import sources_of
from training.recipe_schema.schema import MemberRecipe, Recipe, RecipeError
from training.runs import RunFolder, git_commit, image_digests
from training.start import start_networks
from training.train_network import NetworkTraining, RecipeContext, TrainingOptions, train_network

log = logging.getLogger("train-all")


def begin(
    recipe: Recipe, options: TrainingOptions, clock: TimeLimit | None = None, fingerprint: str | None = None
) -> RecipeContext:
    """Read the inputs of a recipe's steps; make its folds if there are none.

    `fingerprint`: of the tables with improved coordinates, if the recipe is prepared, so that these need not be read
    again.
    Raises TablesError, FoldsError, RecipeError, OutOfFoldError, RunsError.
    """
    folder = RunFolder(options.runs, recipe)
    tables = read_tables(options.data)
    if fingerprint is not None:
        tables = replace(tables, fingerprint=fingerprint)
    else:
        files = images_digest(options.data, tables, image_digests(options.runs))
        tables = replace(tables, fingerprint=fingerprint_of(tables.fingerprint, files))
    if fingerprint is None and options.coordinates is not None:
        tables = with_improved_coordinates(options.coordinates, options.data, tables)
    images, predictions = images_for(recipe, options.coordinates), predictions_for(recipe, options.labels)
    folds = read_shared_folds(folder.folds, folder.own_folds, tables, recipe.folds, recipe.seed)
    folder.priors.parent.mkdir(parents=True, exist_ok=True)
    device = default_device()
    given = (recipe, options, folder, tables, folds, device, git_commit(), images, predictions, clock)
    return RecipeContext(*given, start_networks(options.start))


def prepare(context: RecipeContext, points: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write the label priors and the landmark shape model, and name label points that cannot be right.

    `points`: study → row → mm, of the cache.
    """
    problems = context.folder.priors.with_name("label_problems.csv")
    report_label_points(context.options.data, context.tables, points, problems)
    replace_json(context.folder.priors, weighted_priors(context.tables.labels))
    shape = fit_shape(list(points.values()))
    replace_json(context.folder.shape, None if shape is None else shape.model_dump(mode="json"))


def train_member(
    context: RecipeContext,
    member: MemberRecipe,
    fold: int,
    cache: Callable[[], StackCache],
    errors: Mapping[str, LandmarkError] | None = None,
) -> NetworkTraining:
    """Train one network in one fold; `errors`: the localisation error of its fold, for a localiser that of its sources.

    Raises TrainingError; OutOfTime between two epochs.
    """
    training = NetworkTraining(context, member, fold, cache, errors or {})
    train_network(training)
    return training


def measure_localisers(
    context: RecipeContext, fold: int, landmarks: Callable[[], Mapping[str, Mapping[str, np.ndarray]]]
) -> dict[str, LandmarkError]:
    """Out-of-fold localisation error (mm) per series kind; `landmarks`: the annotated ones."""
    held_out = context.held_out(fold)
    data = (context.options.data, context.tables, held_out, landmarks())
    errors = localiser_errors(context.folder, context.localisers, *data, fold)
    for kind, error in errors.items():
        found = (fold, kind, error.median_mm, error.p95_mm)
        log.info("fold %d: %s located within %.1f mm (median), %.1f mm (95 %%)", *found)
    return errors


def measure_sources(
    context: RecipeContext,
    entry: MemberRecipe,
    fold: int,
    landmarks: Callable[[], Mapping[str, Mapping[str, np.ndarray]]],
) -> dict[str, LandmarkError]:
    """Out-of-fold error (mm) per series kind of the landmarks that a localiser starts from; empty where it draws none.

    `landmarks`: the annotated ones.
    """
    sources = sources_of(context.recipe, entry)
    if not sources:
        return {}
    data = (context.options.data, context.tables, context.held_out(fold), landmarks())
    return source_errors(context.folder, entry.member, sources, *data, fold)


def score_folds(context: RecipeContext, folds: Sequence[int]) -> Score:
    """Validate the trained folds: out-of-fold score, predictions and seconds."""
    data = (context.options.data, context.tables, context.folds)
    score = validate(context.folder, context.members, *data, folds, context.earlier)
    log.info("%s/%s out of fold: %s", context.recipe.name, context.recipe.profile, score)
    for caution in cautions(context.members, context.earlier):
        log.warning("%s/%s: %s", context.recipe.name, context.recipe.profile, caution)
    return score


def images_for(recipe: Recipe, coordinates: Path | None) -> LevelImages | None:
    """The published images, if a network of the recipe is pretrained on them.  Raises RecipeError."""
    pretrained = [one.member for one in recipe.members() if one.fitting.pretraining is not None]
    try:
        for member in pretrained:
            pretrainable(member)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if pretrained and coordinates is None:
        names = ", ".join(member.name for member in pretrained)
        log.warning("no pretraining of %s: name the published coordinates with COORDINATES=", names)
    return read_pretraining(coordinates) if pretrained and coordinates is not None else None


def predictions_for(recipe: Recipe, labels: Path | None) -> EarlierLabels | None:
    """Out-of-fold predictions of an earlier run, if a network of the recipe corrects its labels; or changed labels."""
    if labels is not None and is_label_table(labels):
        return read_labels(labels)
    correcting = [one.member.name for one in recipe.members() if one.fitting.labels.any]
    if correcting and labels is None:
        log.warning(
            "the labels of %s stay as they are: name an earlier run's answers with LABELS=", ", ".join(correcting)
        )
    if labels is not None and not correcting:
        log.warning("LABELS= changes nothing in %s: none of its networks corrects its labels", recipe.name)
    return read_labels(labels) if correcting and labels is not None else None
