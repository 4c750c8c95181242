"""Every trained localiser on the same phantom test studies: one table, with the average position as what to beat.

    python -m training.benchmarks.localisers --data DIR --runs RUNS [--profile bench] [--recipes a b] [--fold 0]

A row is a localiser by itself (one that starts from others' landmarks after those of its recipe), all localisers of a
recipe together as the kernel runs them, or those of all recipes.  The text goes to standard output; locating.json and
locating.png (shares of landmarks within so many mm) go to --out.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from kernels.commands import ends_with_a_sentence
from kernels.lumbar.answers.localiser_answers import answers_of
from kernels.lumbar.answers.locate import Located, locate
from kernels.lumbar.answers.spine_shape import Expectation
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.inputs.member_inputs import InputCache
from kernels.lumbar.labels import LEVELS, ROWS
from kernels.lumbar.networks.devices import default_device
from kernels.lumbar.networks.loading import LoadedMember
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.competition import read_series_table
from kernels.lumbar.run.read_ahead import read_ahead
from kernels.lumbar.run.submission import replace_json
from kernels.profiles import Profile
from training.benchmarks.command import trained_parser
from training.benchmarks.tables import BenchError, Table
from training.data.cache.stack_cache import CacheError, build_cache
from training.data.tables import TablesError, read_tables
from training.evaluation.json_safe import finite
from training.evaluation.localiser_findings import (
    Points,
    average_offsets,
    average_positions,
    findings_of,
    shown,
    summary,
)
from training.evaluation.predictor import Predictor
from training.evaluation.truth import TruthError, read_landmarks
from training.evaluation.validate import fold_manifest
from training.recipe_schema.load import load_named, names_of
from training.recipe_schema.schema import RecipeError
from training.runs import RunFolder, UnusableRun, cache_of

MEAN_SHAPE = "mean shape (always the average position)"
ALL_RECIPES = "all recipes together"
VIEW_NAMES = {"sagittal_t2": "canal, Sag T2", "sagittal_t1": "foramina, Sag T1", "axial_t2": "recesses, Ax T2"}
CURVE_END_MM = 20.0


@dataclass(frozen=True)
class FinishedRecipe:
    """The finished localisers of one recipe, by their names in it, and how many it has in all."""

    recipe: str
    localisers: dict[str, LoadedMember]
    total: int
    expectation: Expectation | None


@dataclass(frozen=True)
class Candidate:
    """A row of the table: one localiser, run after those it starts from, or several together."""

    name: str
    localisers: tuple[LoadedMember, ...]
    expectation: Expectation | None
    alone: bool = False
    first: tuple[LoadedMember, ...] = ()

    def run(self, study: Study) -> tuple[Located, float]:
        """Located landmarks of a study, and the seconds without those of the localisers before it."""
        before = locate([study], self.first, self.expectation)[0] if self.first else Located()
        started = time.perf_counter()
        if not self.alone:
            located = locate([study], self.localisers, self.expectation)[0]
        else:
            inputs = InputCache([study], [before.points])
            (answers,) = answers_of(inputs, self.localisers[0], [before.confidence], True)
            located = Located({row: answer.point for row, answer in answers.items()})
        return located, time.perf_counter() - started

    @property
    def rows(self) -> list[str]:
        """The landmarks that it predicts."""
        named = {row for localiser in self.localisers for row in localiser.member.answered}
        return [row for row in ROWS if row in named]

    @property
    def slices_only(self) -> bool:
        """Whether it predicts slices alone, without a place in them."""
        return all(localiser.member.answers == "slices" for localiser in self.localisers)

    def cost(self) -> dict[str, float | None]:
        """Parameters, and GFLOPs a study with test-time augmentation."""
        gflops = [localiser.artefact.provenance.gflops_per_study for localiser in self.localisers]
        known = [one for one in gflops if one is not None]
        return {
            "parameters": sum(weight.numel() for one in self.localisers for weight in one.module.parameters()),
            "gflops": sum(known) if len(known) == len(gflops) else None,
        }


def find_finished(runs: Path, names: Sequence[str], profile: Profile, fold: int, data: Path) -> list[FinishedRecipe]:
    """The finished localisers of each recipe; standard error gets the commands that train the others.

    Raises BenchError where there is none at all.
    """
    device = default_device()
    found = []
    for name in names:
        folder = RunFolder(runs, load_named(name, profile))
        start = f"{folder.recipe.name}_"
        done, missing = folder.finished(fold, "localiser")
        if missing:
            train = f"make train-all DATA={data} RUNS={runs} RECIPES={name} PROFILE={profile} FOLDS={fold}"
            others = ", ".join(one.member.name.removeprefix(start) for one in missing)
            sys.stderr.write(f"{name}: not trained, or by another recipe: {others} ({train})\n")
        if not done:
            continue
        predictor = Predictor(fold_manifest(folder, done, fold), folder.root, device)
        for problem in predictor.problems:
            sys.stderr.write(f"{name}: left out: {problem.detail}\n")
        suffix = f"_fold{fold}"
        loaded = {key.removeprefix(start).removesuffix(suffix): one for key, one in predictor.members.items()}
        if loaded:
            found.append(FinishedRecipe(name, loaded, len(done) + len(missing), predictor.expectation))
    if not found:
        raise BenchError(f"{runs} holds no finished localiser of profile {profile}, fold {fold}: train one first")
    return found


def candidates(finished: Sequence[FinishedRecipe]) -> list[Candidate]:
    """All rows but the mean shape: recipe by recipe its localisers and its whole set, then all together."""
    rows = []
    for one in finished:
        for local, localiser in one.localisers.items():
            first = _starters(localiser, one.localisers)
            name = f"{one.recipe} {local}" + (f" after {', '.join(first)}" if first else "")
            rows.append(Candidate(name, (localiser,), one.expectation, True, tuple(first.values())))
        missing = one.total - len(one.localisers)
        name = f"{one.recipe} together" + (f" ({missing} of {one.total} missing)" if missing else "")
        rows.append(Candidate(name, tuple(one.localisers.values()), one.expectation))
    if len(finished) > 1:
        everything = tuple(localiser for one in finished for localiser in one.localisers.values())
        rows.append(Candidate(ALL_RECIPES, everything, finished[0].expectation))
    return rows


def _starters(localiser: LoadedMember, others: dict[str, LoadedMember]) -> dict[str, LoadedMember]:
    """Those of its recipe that predict its input landmarks, and the inputs of these; no other refiners of the same."""
    found: set[str] = set()
    wanted = localiser.member.needed
    while wanted:
        finders = {name: set(one.member.answered) - one.member.needed for name, one in others.items()}
        new = {name for name, rows in finders.items() if name not in found and wanted & rows}
        found |= new
        wanted = {row for name in new for row in others[name].member.needed}
    return {name: other for name, other in others.items() if name in found and other is not localiser}


def measure(data: Path, truth: Mapping[str, Points], rows: Sequence[Candidate], offsets: Points) -> dict[str, Any]:
    """Findings as a table, seconds by row, landmarks that no slice shows, and problems by kind and member."""
    series = read_series_table(data / "test_series_descriptions.csv").series
    findings: list[dict[str, Any]] = []
    seconds: dict[str, list[float]] = {row.name: [] for row in rows}
    hidden, problems = 0, Counter[tuple[str, str]]()
    names = {localiser.member.name for row in rows for localiser in row.localisers}
    read = read_ahead(data / "test_images", series, sorted(truth), Clock(float("inf")))
    for study in tqdm(read, total=len(truth), unit="study", desc="locating"):
        true = truth[study.study_id]
        slices = shown(study, true)
        hidden += len(true) - len(slices)
        for row in rows:
            located, took = row.run(study)
            seconds[row.name].append(took)
            judged = findings_of(
                study.study_id, true, slices, located.points, row.rows, located.guessed, row.slices_only
            )
            findings += [{"localiser": row.name} | one for one in judged]
        average = average_positions(study, offsets)
        findings += [{"localiser": MEAN_SHAPE} | one for one in findings_of(study.study_id, true, slices, average)]
        problems.update({(one.kind, one.where) for one in study.problems if one.where in names})
    if not findings:
        raise BenchError(f"no slice of {data / 'test_images'} shows a true landmark: make the phantom again")
    return {"findings": pd.DataFrame(findings), "seconds": seconds, "hidden": hidden, "problems": problems}


def report(findings: pd.DataFrame, costs: Mapping[str, Mapping[str, float | None]]) -> tuple[str, dict[str, Any]]:
    """The tables as text, and all their numbers by localiser: those with costs in their order, then the others."""
    numbers: dict[str, Any] = {}
    for name in dict.fromkeys([*costs, *findings["localiser"]]):
        own = findings[findings["localiser"] == name]
        views = {view: part for view in VIEW_NAMES if len(part := own[own["view"] == view])}
        numbers[name] = {
            "together": summary(own),
            "sagittal": summary(own[own["view"].str.startswith("sagittal")]),
            "views": {view: summary(part) for view, part in views.items()},
            "levels": {
                view: {level: summary(part[part["level"] == level]) for level in LEVELS} for view, part in views.items()
            },
            "cost": dict(costs.get(name, {})),
        }
    tables = [_main_table(numbers), *(_level_table(numbers, view) for view in VIEW_NAMES)]
    return "\n\n".join(table.text() for table in tables), finite(numbers)


def _main_table(numbers: Mapping[str, Any]) -> Table:
    """A row a localiser; a dash for what it does not answer or does not have."""
    columns = ["", "canal", "95 %", "foramina", "95 %", "recesses", "95 %", "≤ 5 mm", "≤ 10 mm"]
    columns += ["level sag.", "axial", "slice sag.", "axial", "found", "M par.", "GFLOPs", "ms"]
    views_text = "; ".join(VIEW_NAMES.values())
    title = f"median and 95 % of the error in plane, mm ({views_text}); right level and slice, sagittal and axial"
    table = Table("main", title, columns)
    for name, one in numbers.items():
        views, cost = one["views"], one["cost"]
        cells = [_number(views.get(view, {}).get(what)) for view in VIEW_NAMES for what in ("median_mm", "p95_mm")]
        cells += [_percent(one["together"][f"within_{limit}_mm"]) for limit in (5, 10)]
        for what in ("right_level", "right_slice"):
            cells += [_percent(one["sagittal"][what]), _percent(views.get("axial_t2", {}).get(what))]
        millions = None if cost.get("parameters") is None else cost["parameters"] / 1e6
        cells += [_percent(one["together"]["found"]), _number(millions, 2)]
        table.rows.append([name, *cells, _number(cost.get("gflops"), 2), _number(cost.get("ms"))])
    return table


def _level_table(numbers: Mapping[str, Any], view: str) -> Table:
    """Median and 95th percentile of the error, and right levels and slices, at each level."""
    names = [level.upper().replace("_", "/") for level in LEVELS]
    columns = [column for name in names for column in (f"{name} median", "95 %", "level", "slice")]
    table = Table(view, VIEW_NAMES[view], ["", *columns])
    for name, one in numbers.items():
        cells: list[str] = []
        for at in one["levels"].get(view, {}).values():
            cells += [_number(at["median_mm"]), _number(at["p95_mm"])]
            cells += [_percent(at["right_level"]), _percent(at["right_slice"])]
        if cells:
            table.rows.append([name, *cells])
    return table


def _number(value: float | None, digits: int = 1) -> str:
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    if share is None or math.isnan(share):
        return "–"
    return f"{min(100 * share, 99.9):.1f}%" if share < 1 else "100%"


def draw_curves(findings: pd.DataFrame, path: Path) -> None:
    """One panel a view, one curve a localiser: the share of its landmarks that it finds within so many mm.

    A recipe has one colour; all its localisers together are the thick line.
    """
    figure = Figure(figsize=(18, 7.5))
    axes = figure.subplots(1, len(VIEW_NAMES), sharey=True)
    limits = np.linspace(0, CURVE_END_MM, 201)
    recipes = list(dict.fromkeys(str(name).split()[0] for name in findings["localiser"]))
    for axis, (view, title) in zip(axes, VIEW_NAMES.items(), strict=True):
        drawn: Counter[str] = Counter()
        for name, own in findings[findings["view"] == view].groupby("localiser", sort=False):
            errors, recipe = own["error_mm"].to_numpy(float), str(name).split()[0]
            if np.isnan(errors).any():
                continue
            style: dict[str, Any] = {"color": f"C{recipes.index(recipe)}", "linewidth": 2.6}
            if name == MEAN_SHAPE:
                style = {"color": "black", "linestyle": "--"}
            elif "together" not in str(name):
                style |= {"linewidth": 1.3, "linestyle": ("-", "--", ":", "-.")[drawn[recipe] % 4]}
                drawn[recipe] += 1
            axis.plot(limits, (errors[:, None] <= limits).mean(0), label=str(name), **style)
        axis.set(title=title, xlabel="error in plane, mm", xlim=(0, CURVE_END_MM), ylim=(0, 1.01))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize=8, frameon=False)
    axes[0].set_ylabel("share of landmarks")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def bench(data: Path, runs: Path, out: Path, names: Sequence[str], profile: Profile, fold: int, jobs: int) -> str:
    """The tables as text; locating.json and locating.png are left in `out`."""
    truth = read_landmarks(data, "test")
    if not truth:
        raise BenchError(f"{data / 'truth'} names no test study: make a phantom with some (--test)")
    if absent := [study for study in truth if not (data / "test_images" / study).is_dir()]:
        raise BenchError(f"{data / 'test_images'} lacks {len(absent)} of {len(truth)} studies, {absent[0]} among them")
    out.mkdir(parents=True, exist_ok=True)
    rows = candidates(find_finished(runs, names, profile, fold, data))
    training = build_cache(data, read_tables(data), cache_of(runs), jobs).points
    measured = measure(data, truth, rows, average_offsets(list(training.values())))
    findings = measured["findings"]
    ms = {name: 1e3 * float(np.median(took)) for name, took in measured["seconds"].items()}
    costs = {row.name: {**row.cost(), "ms": ms[row.name]} for row in rows}
    text, numbers = report(findings, costs)
    device = "CUDA" if torch.cuda.is_available() else f"the CPU, threads: {torch.get_num_threads()}"
    remarks = [
        f"{findings['study'].nunique()} test studies, profile {profile}, fold {fold}, on {device}; "
        f"{measured['hidden']} true landmarks that no slice shows are left out",
        "found: not imputed from the others; right slice: that of the truth or one beside it; after: with landmarks of "
        "these as inputs",
        *(f"{count} studies with {kind} of {where}" for (kind, where), count in measured["problems"].most_common()),
    ]
    replace_json(out / "locating.json", {"remarks": remarks, "localisers": numbers})
    draw_curves(findings, out / "locating.png")
    return "\n".join([text, "", *remarks])


@ends_with_a_sentence(
    "bench-locate stopped", BenchError, TruthError, TablesError, RecipeError, CacheError, UnusableRun, OSError
)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; expected errors end it with one sentence and exit code 1."""
    parser = trained_parser("localisers", __doc__, "locating.json and locating.png")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that decode; 1 or more")
    given = parser.parse_args(argv)
    names, out = names_of(given.recipes), given.out or given.runs
    text = bench(given.data, given.runs, out, names, given.profile, given.fold, given.jobs)
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
