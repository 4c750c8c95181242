"""Does one step of a grid, and records of what its results were made."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import nullcontext

import numpy as np
import torch

import build_dataset
from kernels.build_notebook import BuildError
from kernels.lumbar.run.submission import replace_json
from training import steps
from training.data.label_correction import check_coverage
from training.digests import file_digest
from training.ensemble import find
from training.fitting import FitError
from training.fitting.device import ranks
from training.fitting.preflight import check_recipes
from training.fitting.start_weights import check_start
from training.networks import NetworkError
from training.train_all import STEP_ERRORS
from training.workflow.gpus import one_gpu
from training.workflow.grid import TRAININGS, Grid, Step
from training.workflow.staleness import Staleness
from training.workflow.step_journal import attempt

log = logging.getLogger("step")


class StepError(Exception):
    """A command of this project failed, after it printed why."""


EXPECTED = (*STEP_ERRORS, FitError, NetworkError, BuildError, StepError, OSError)


def do_step(grid: Grid, step: Step, threads: int) -> None:
    """Run one step unless its results are current, then write the stamp file that Snakemake waits for."""
    torch.set_num_threads(threads)
    is_on_cpu = step.kind in ("prepare", "ensemble", "package")
    if not is_on_cpu and int(os.environ.get("RANK", "0")) and ranks() > 1:
        _of_recipe(grid, step)  # the first rank writes everything, journal and stamp too
        return
    with nullcontext() if is_on_cpu else one_gpu(grid.own):
        device = torch.cuda.get_device_name() if not is_on_cpu and torch.cuda.is_available() else "cpu"
        with attempt(grid, step, device):
            found = {"ensemble": _search, "package": _package}.get(step.kind, _of_recipe)(grid, step)
            stamp = grid.stamp(step)
            stamp.parent.mkdir(parents=True, exist_ok=True)
            replace_json(stamp, {"made_of": Staleness(grid).made_of(step), **found})


def _of_recipe(grid: Grid, step: Step) -> dict[str, object]:
    """One step of one recipe; returns what its stamp holds besides."""
    order, recipe = grid.order, grid.recipes[step.recipe]
    folders = (order.coordinates, order.labels, order.cache, order.start)
    options = steps.TrainingOptions(order.data, order.runs, order.jobs, order.localisers_only, *folders)
    if step.kind == "prepare":
        return _prepare(grid, steps.begin(recipe, options))
    known = Staleness(grid).source_of(step.recipe) if order.coordinates else None
    context = steps.begin(recipe, options, fingerprint=known[0] if known else None)
    if step.kind == "validate":
        steps.score_folds(context, grid.folds[step.recipe])
        return {}

    def landmarks() -> Mapping[str, Mapping[str, np.ndarray]]:
        return context.open_cache().landmarks

    if step.kind == "localiser" or step.member and step.kind == "errors":
        errors = steps.measure_sources(context, grid.member(step), step.fold, landmarks)
    else:
        errors = steps.measure_localisers(context, step.fold, landmarks)
    if step.kind in TRAININGS:
        steps.train_member(context, grid.member(step), step.fold, context.open_cache, errors)
    return {}


def _prepare(grid: Grid, context: steps.RecipeContext) -> dict[str, object]:
    """Check the recipe, make its folds, priors and shape, and the cache of stacks that all recipes share."""
    check_recipes([context.recipe], grid.order.localisers_only)
    folds = grid.folds[context.recipe.name]
    check_start([context.recipe], [folds], grid.order.start, grid.order.localisers_only)
    if context.earlier is not None:
        check_coverage(context.earlier, context.tables.labels)
    steps.prepare(context, context.open_cache(check_pixels=True).points)
    return {
        "source": Staleness(grid).source,
        "tables": context.tables.fingerprint,
        "images": context.images.fingerprint if context.images else None,
        "cache": str(context.cache_folder.resolve()),
    }


def _search(grid: Grid, step: Step) -> dict[str, object]:
    given = ["--runs", str(grid.order.runs), "--profile", grid.order.profile, "--out", str(grid.ensemble)]
    if find.main([*given, "--recipes", *grid.order.recipes]):
        raise StepError
    return {"result": file_digest(grid.ensemble)}


def _package(grid: Grid, step: Step) -> dict[str, object]:
    order = grid.order
    given = ["--runs", str(order.runs), "--out", str(order.package), "--profile", order.profile]
    given += ["--recipes", ",".join(order.recipes)]
    given += ["--folds", *map(str, order.folds)] if order.folds else []
    given += ["--owner", order.owner] if order.owner else []
    given += ["--ensemble", str(grid.ensemble)] if grid.has_ensemble else []
    if build_dataset.main(given):
        raise StepError
    return {}
