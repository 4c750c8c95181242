"""What phantom weights, training on real spines and both together are worth on the canal: one table with intervals.

    python -m training.benchmarks.real --data DIR --runs RUNS [--weights PACKAGE] [--profile bench] [--rows zero …]

DATA is an import (make import-spider).  Rows: the package as it is; the recipe canal_only trained on DATA from scratch,
begun from the package's networks of the same names, and begun from ImageNet weights where PRETRAINED_DIR has them.  One
fold is trained and measured on DATA's test patients; with --crossed all folds are, each on the training patients that
it never saw.  RUNS/real holds the table, and pictures of the best, the middle and the worst
patient of each row; what is finished is not done again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.commands import ends_with_a_sentence
from kernels.lumbar.labels import ROWS
from kernels.lumbar.networks.weights import WeightsError
from kernels.lumbar.run.submission import replace_json
from kernels.profiles import PROFILES
from training.benchmarks.grader_answers import labels_of
from training.benchmarks.real.candidates import (
    RECIPE,
    TITLES,
    ZERO,
    BenchOrder,
    has_learned_from,
    make_candidates,
    possible,
)
from training.benchmarks.real.figures import RowFigures, StudyResult, figures_of, prior_loss
from training.benchmarks.real.measure import SPLITS, check_whole, results_of
from training.benchmarks.real.rescaled import as_packaged
from training.benchmarks.tables import BenchError, Table
from training.data.folds import FoldsError, make_folds
from training.data.out_of_fold import OutOfFoldError
from training.data.tables import TablesError, read_tables
from training.data.training_priors import weighted_priors
from training.ensemble.search import SearchError
from training.evaluation.intervals import Interval
from training.evaluation.json_safe import finite
from training.evaluation.truth import TruthError, read_landmarks, read_solution
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import RecipeError
from training.runs import RunsError, UnusableRun

COLUMNS = ["", "patients", "median mm", "95 % mm", "right level", "canal log loss", "less the prior", "AUC"]
EXPLANATION = (
    "[ ]: 95 % of 2,000 resamples of the patients.  Priors: of the training patients, of other folds where all are "
    "measured.  Calibrated: with temperatures and multipliers as make package fits them, here on the other folds' "
    "patients.  AUC: moderate or severe against normal.  Canal severity of an import is a proxy "
    "by the canal's width, so its log loss says nothing of the competition's labels."
)


def bench(order: BenchOrder, wanted: Sequence[str]) -> str:
    """The table as text; it and the pictures are left in RUNS/real.  Raises BenchError and what training raises."""
    tables, truth = read_tables(order.data), {split: read_landmarks(order.data, split) for split in SPLITS}
    measured, other = SPLITS if order.is_crossed else SPLITS[::-1]
    if not truth[measured]:
        raise BenchError(
            f"{order.data / 'truth' / 'landmarks.csv'} names no {measured} patients: import more of them, or measure "
            "all with CROSSED=1"
        )
    known = {str(study): row.to_numpy() for study, row in tables.labels[list(ROWS)].iterrows()}
    if truth["test"]:
        known |= {str(study): row.to_numpy() for study, row in labels_of(read_solution(order.data)).iterrows()}
    for split in SPLITS:
        check_whole(order.data, split, truth[split], known)
    priors = _priors(tables.labels, list(known), order)
    keys, remarks = possible(order, wanted, tables.fingerprint)
    if not keys:
        raise BenchError("; ".join(remarks))
    out = order.runs / "real"
    out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, RowFigures] = {}
    for key in keys:
        candidates = make_candidates(key, order)
        found: dict[str, StudyResult] = {}
        for candidate in candidates:
            found |= results_of(candidate, order.data, measured, truth[measured], out)
        figures[TITLES[key]] = figures_of(found, known, priors)
        if run := candidates[0].run:
            figures[f"{TITLES[key]}, calibrated"] = figures_of(as_packaged(run, found), known, priors)
        if key == ZERO and truth[other] and not has_learned_from(order, tables.fingerprint):
            both = found | results_of(candidates[0], order.data, other, truth[other], out)
            figures[f"{TITLES[key]}, on all patients"] = figures_of(both, known, priors)
    table = _table(order, figures, len(truth[measured]), prior_loss(sorted(truth[measured]), known, priors))
    lines = [table.text(), "", EXPLANATION, *remarks, f"pictures of the best, the median and the worst: {out}/*.png"]
    replace_json(out / "real.json", finite({"rows": {name: asdict(one) for name, one in figures.items()}}))
    return "\n".join(lines)


def _priors(labels: pd.DataFrame, studies: Sequence[str], order: BenchOrder) -> dict[str, np.ndarray]:
    """Study → (25, 3) priors of the training patients; crossed, of those in the other folds."""

    def rows_of(some: pd.DataFrame) -> np.ndarray:
        by_row = weighted_priors(some)
        return np.array([by_row[row] for row in ROWS])

    priors = dict.fromkeys(studies, rows_of(labels))
    if order.is_crossed:
        recipe = load_named(RECIPE, order.profile)
        folds = make_folds(labels, recipe.folds, recipe.seed)
        by_fold = {fold: rows_of(labels[labels.index.map(folds) != fold]) for fold in range(recipe.folds)}
        priors |= {study: by_fold[fold] for study, fold in folds.items()}
    return priors


def _table(order: BenchOrder, figures: Mapping[str, RowFigures], patients: int, of_priors: Interval) -> Table:
    how = "each patient by the fold that never saw it" if order.is_crossed else "fold 0"
    table = Table("real", f"{order.data}, profile {order.profile}, {how}", COLUMNS)
    table.rows = [[name, *_cells(one)] for name, one in figures.items()]
    unknown = ["–"] * 3
    table.rows.append(["level priors", f"{patients}", *unknown, _text(of_priors, 3), *unknown[1:]])
    return table


def _cells(one: RowFigures) -> list[str]:
    share = Interval(*(100 * value for value in (one.right_level.value, one.right_level.low, one.right_level.high)))
    mm = [_text(one.median_mm, 1), _text(one.p95_mm, 0), f"{_text(share, 0)} %"]
    return [f"{one.studies}", *mm, _text(one.log_loss, 3), _text(one.against_prior, 2, "+"), _text(one.auc, 2)]


def _text(one: Interval, digits: int, sign: str = "") -> str:
    value, low, high = (f"{number:{sign}.{digits}f}" for number in (one.value, one.low, one.high))
    return f"{value} [{low}, {high}]".replace("nan", "–").replace("inf", "∞")


@ends_with_a_sentence(
    "bench-real stopped",
    BenchError,
    TruthError,
    TablesError,
    RecipeError,
    RunsError,
    UnusableRun,
    FoldsError,
    SearchError,
    OutOfFoldError,
    WeightsError,
    OSError,
)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; expected errors end it with one sentence and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="training.benchmarks.real", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="an import, such as of make import-spider")
    parser.add_argument("--runs", type=Path, required=True, help="where networks, table and pictures go")
    parser.add_argument("--weights", type=Path, help="a package of make package, such as the demo's")
    parser.add_argument("--profile", choices=PROFILES, default="bench")
    parser.add_argument("--crossed", action="store_true", help="train all folds; each measures those it held out")
    parser.add_argument("--rows", nargs="*", choices=list(TITLES), default=[], help="default: all that can be made")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that decode; 1 or more")
    given = parser.parse_args(argv)
    order = BenchOrder(given.data, given.runs, given.weights, given.profile, given.crossed, max(1, given.jobs))
    print(bench(order, given.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
