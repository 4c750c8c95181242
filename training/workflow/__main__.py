"""The grid of trainings as a DAG: run it, see what would run, or how far it is.

    python -m training.workflow run|plan --data DIR --runs RUNS [--recipes a b.yaml] [--profile smoke|bench|full]
        [--folds 0 1] [--jobs N] [--gpus N] [--executor slurm|kubernetes|shell|DIR] [--package DIR] [-- SNAKEMAKE'S]
    python -m training.workflow check --data DIR --runs RUNS …
    python -m training.workflow status --runs RUNS
    python -m training.workflow bench --data DIR --runs RUNS …

Exit code 1: a job failed, or an order that cannot be done; one sentence names it and the reason.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels.commands import ends_with_a_sentence
from kernels.locks import BusyError
from training.data.cache.stack_cache import CacheError, room_sentence
from training.data.folds import FoldsError
from training.data.label_correction import check_coverage, read_labels
from training.data.out_of_fold import OutOfFoldError
from training.data.tables import Tables, TablesError, read_tables
from training.recipe_schema.load import add_order
from training.recipe_schema.schema import RecipeError
from training.runs import RunsError, cache_of
from training.start import start_networks
from training.workflow.engine import ExecutionOptions, ExecutorError, profile_of, run, slots_of
from training.workflow.gpus import gpus_here
from training.workflow.grid import GRID, PATHS, Grid, GridOrder, make_grid, own_folder, read_grid
from training.workflow.grid_workers import bench
from training.workflow.plan_and_status import plan_of, status_of


@ends_with_a_sentence(
    "train-all stopped",
    CacheError,
    RecipeError,
    TablesError,
    FoldsError,
    OutOfFoldError,
    RunsError,
    BusyError,
    ExecutorError,
    OSError,
)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    given = list(sys.argv[1:] if argv is None else argv)
    further: list[str] = []
    if "--" in given:
        given, further = given[: given.index("--")], given[given.index("--") + 1 :]
    parser = argparse.ArgumentParser(prog="training.workflow", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("run", "do it"),
        ("plan", "print what would run"),
        ("check", "say what is wrong with the options, before there are data"),
        ("bench", "one worker against two"),
    ):
        _add_further(commands.add_parser(name, help=help_text))
    status = commands.add_parser("status", help="a line a job")
    status.add_argument("--runs", type=Path, required=True)
    options = parser.parse_args(given)
    return _do(options, further)


def _add_further(parser: argparse.ArgumentParser) -> None:
    add_order(parser)
    parser.add_argument("--package", type=Path, help="also make the Kaggle dataset, in this folder")
    parser.add_argument("--no-ensemble", action="store_true", help="do not search the best mixture of the recipes")
    parser.add_argument("--owner", help="Kaggle user name, for the package")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="jobs at a time, and processes that decode"
    )
    parser.add_argument(
        "--threads", type=int, help="threads of a training on this machine; default: one where JOBS > 1"
    )
    parser.add_argument("--gpus", type=int, help="GPUs to use here, one a job; default: all")
    parser.add_argument(
        "--executor", help="where jobs run, in place of this machine: slurm, kubernetes, shell, or a profile"
    )


def _do(options: argparse.Namespace, further: Sequence[str]) -> int:
    if options.command == "status":
        print(status_of(_kept_grid(options.runs)))
        return 0
    if options.jobs < 1:
        raise RecipeError(f"JOBS is the number of jobs at a time, 1 or more, not {options.jobs}")
    given = {name: getattr(options, name) for name in GridOrder.model_fields if hasattr(options, name)}
    given |= {name: given[name].resolve() for name in PATHS if given[name]}
    start_networks(options.start)  # refused before anything begins
    order = GridOrder.model_validate(given | {"search": not options.no_ensemble})
    grid = make_grid(order)
    if options.command == "bench":
        return bench(order)
    if options.executor is not None:
        profile_of(options.executor)
    if options.command == "check":
        return 0
    tables = read_tables(order.data)
    if order.labels is not None:
        check_coverage(read_labels(order.labels), tables.labels)
    gpus = gpus_here() if options.gpus is None else options.gpus
    execution = ExecutionOptions(0 if options.executor else gpus, options.executor, options.threads, tuple(further))
    if options.command == "plan":
        print(plan_of(grid, slots_of(grid, execution)))
        _print_room(order, tables)
        return 0
    _print_room(order, tables)
    return run(grid, execution)


def _print_room(order: GridOrder, tables: Tables) -> None:
    """What decoding will take, if anything is to be decoded.  Raises CacheError where the disk has less."""
    if room := room_sentence(order.data, tables, order.cache or cache_of(order.runs)):
        print(room, flush=True)


def _kept_grid(runs: Path) -> Grid:
    """The grid of the last run in a folder.  Raises RecipeError where there was none."""
    path = own_folder(runs.resolve()) / GRID
    if not path.is_file():
        raise RecipeError(f"{runs} holds no grid: begin one with make train-all, or name its folder with RUNS=")
    try:
        return read_grid(path)
    except ValueError as error:
        raise RecipeError(f"{path} cannot be read: the next make train-all writes it anew") from error


if __name__ == "__main__":
    sys.exit(main())
