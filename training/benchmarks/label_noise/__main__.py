"""Label errors are planted in a phantom; networks are trained on them, and again on labels that relabel changed.

    python -m training.benchmarks.label_noise --data DIR --out DIR [--recipes split_and_global] [--profile smoke]
        [--noise 0.1] [--folds 0 1 2 3 4] [--ways drop mix] [--clean]

All folds of the recipes are trained once on the wrong labels and once for each way; --clean trains on the true ones as
well: the most that relabelling could gain.  Each is packaged and run by the kernel on the test studies, whose truth is
clean; differences are paired.  What is finished is not done again.  OUT/label_noise.json holds the figures.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import build_dataset
from kernels.commands import ends_with_a_sentence
from kernels.lumbar.labels import ROWS, SEVERITIES
from kernels.lumbar.run.submission import replace_json
from kernels.profiles import PROFILES
from kernels.whole_folder import whole_folder
from training import train_all
from training.benchmarks.grader_answers import labels_of
from training.benchmarks.label_noise.plant import found_by, write_noisy
from training.benchmarks.tables import BenchError, Table
from training.data.label_correction import read_labels
from training.data.label_table import LabelTable
from training.data.out_of_fold import OutOfFoldError
from training.data.tables import TABLES, TablesError
from training.data.tables import read_labels as read_truth
from training.ensemble import relabel
from training.evaluation.intervals import FIGURES, differences, intervals
from training.evaluation.json_safe import finite
from training.evaluation.truth import TruthError, read_solution

NOISY, CLEAN = "wrong labels", "true labels"
WAYS = {"drop": [], "mix": ["--mix"]}
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Order:
    """What is trained, and where it goes."""

    data: Path
    out: Path
    recipes: list[str]
    profile: str
    folds: list[int]
    jobs: int


def bench(order: Order, noise: float, ways: Sequence[str], with_clean: bool) -> str:
    """The table as text.  Raises BenchError for a step that fails."""
    solution = labels_of(read_solution(order.data))
    noisy = write_noisy(order.data, order.out / "data", noise)
    first = order.out / "runs-noisy"
    answered = {NOISY: answers_of(order, trained(order, noisy, first))}
    labels = [read_truth(folder / TABLES[0]) for folder in (order.data, noisy)]
    remarks = []
    for way in ways:
        table = order.out / f"relabelled-{way}"
        given = ["--runs", str(first), "--out", str(table), "--profile", order.profile, "--recipes", *order.recipes]
        _done(relabel.main([*given, *WAYS[way]]), "relabel")
        changed = read_labels(table / relabel.TABLE)
        assert isinstance(changed, LabelTable)
        remarks.append(f"{way}: {found_by(changed, *labels)}")
        again = order.out / f"runs-{way}"
        if not again.is_dir():
            with whole_folder(again) as copy:
                shutil.copytree(first, copy, ignore=shutil.ignore_patterns("cache"), dirs_exist_ok=True)
        more = ["--labels", str(table / relabel.TABLE)]
        answered[f"relabelled: {way}"] = answers_of(order, trained(order, noisy, again, *more))
    if with_clean:
        answered[CLEAN] = answers_of(order, trained(order, order.data, order.out / "runs-clean"))
    text, figures = compared(solution, answered, f"{noise:.0%} of the training labels are wrong")
    replace_json(order.out / "label_noise.json", finite({"scores": figures, "found": remarks}))
    return "\n".join([text, *remarks])


def trained(order: Order, data: Path, runs: Path, *more: str) -> Path:
    """Train what is not finished; decoded studies are those of the first training.  Returns `runs`."""
    given = ["--data", str(data), "--runs", str(runs), "--profile", order.profile, "--recipes", *order.recipes]
    given += ["--jobs", str(order.jobs), "--cache", str(order.out / "cache"), *more]
    given += ["--folds", *map(str, order.folds)] if order.folds else []
    _done(train_all.main(given), "train-all")
    return runs


def answers_of(order: Order, runs: Path) -> pd.DataFrame:
    """The kernel's submission for the test studies, by a package of these runs."""
    weights, out = (Path(f"{runs}-{one}") for one in ("weights", "out"))
    given = ["--runs", str(runs), "--out", str(weights), "--profile", order.profile, "--owner", "nobody"]
    given += ["--recipes", ",".join(order.recipes)]
    given += ["--folds", *map(str, order.folds)] if order.folds else []
    _done(build_dataset.main(given), "package")
    command = [sys.executable, "-m", "kernels.lumbar.predict", "--competition", str(order.data)]
    command += ["--weights", str(weights), "--out", str(out)]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    _done(subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, check=False).returncode, "the kernel")
    return pd.read_csv(out / "submission.csv", dtype={"row_id": str}).set_index("row_id")[list(SEVERITIES)]


def compared(
    solution: pd.DataFrame, answered: dict[str, pd.DataFrame], title: str
) -> tuple[str, dict[str, dict[str, object]]]:
    """Scores with intervals, and paired differences to the first of the answers; the same as numbers."""
    labels, names = solution[list(ROWS)].to_numpy(), [f"{study}_{row}" for study in solution.index for row in ROWS]
    rows = {name: its.loc[names].to_numpy().reshape(*labels.shape, len(SEVERITIES)) for name, its in answered.items()}
    base = rows[next(iter(rows))]
    table = Table("label_noise", f"{title}, {len(labels)} test studies", ["trained on", *FIGURES, "less the first"])
    figures: dict[str, dict[str, object]] = {}
    for name, its in rows.items():
        scores, gain = intervals(labels, its), differences(labels, its, base)["final"]
        same = np.array_equal(its, base)
        less = "" if same else f"{gain.text} {gain.verdict}"
        table.rows.append([name, *(f"{scores[part].value:.4f}" for part in FIGURES), less])
        figures[name] = {part: asdict(one) for part, one in scores.items()} | {"less_the_first": asdict(gain)}
    return table.text(), figures


def _done(code: int, what: str) -> None:
    if code:
        raise BenchError(f"{what} ended with code {code}; the same command resumes")


@ends_with_a_sentence("bench-relabel stopped", BenchError, TruthError, TablesError, OutOfFoldError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; expected errors end it with one sentence and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="training.benchmarks.label_noise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="a phantom data set")
    parser.add_argument("--out", type=Path, required=True, help="where data, runs, packages and figures go")
    parser.add_argument("--recipes", nargs="+", default=["split_and_global"])
    parser.add_argument("--profile", choices=PROFILES, default="smoke")
    parser.add_argument("--folds", nargs="*", type=int, default=[0, 1, 2, 3, 4], help="default: 0 1 2 3 4")
    parser.add_argument("--noise", type=float, default=0.1, help="share of wrong labels")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--clean", action="store_true", help="also train on the true labels")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that decode")
    given = parser.parse_args(argv)
    if not 0 < given.noise < 1:
        raise BenchError(f"NOISE is a share of all labels, such as 0.1, not {given.noise:g}")
    order = Order(given.data, given.out, given.recipes, given.profile, given.folds, given.jobs)
    print(bench(order, given.noise, given.ways, given.clean))
    return 0


if __name__ == "__main__":
    sys.exit(main())
