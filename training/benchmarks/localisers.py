"""Every trained localiser on the same phantom test studies: one table, with the average position as what to beat.

    python -m training.benchmarks.localisers --data DIR --runs RUNS [--profile bench] [--recipes a b] [--fold 0]

A row is a localiser by itself (one that starts from others' landmarks after those of its recipe), all localisers of a
recipe together as the kernel runs them, or those of all recipes.  The text goes to standard output; locating.json and
locating.png (shares of landmarks within so many mm) go to --out.
"""

from __future__ import annotations

import argparse
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
from tqdm import tqdm

from kernels.lumbar.answers.localiser_answers import answers_of
from kernels.lumbar.answers.locate import Located, answered, locate, needed
from kernels.lumbar.answers.spine_shape import Expectation
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.inputs.member_inputs import InputCache
from kernels.lumbar.labels import ROWS
from kernels.lumbar.networks.devices import default_device
from kernels.lumbar.networks.loading import LoadedMember
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.competition import read_series_table
from kernels.lumbar.run.read_ahead import read_ahead
from kernels.lumbar.run.submission import replace_json
from training.benchmarks.localiser_tables import draw_curves, report
from training.data.cache.crop_cache import CacheError, build_cache
from training.data.tables import TablesError, read_tables
from training.evaluation.localiser_findings import Points, average_offsets, average_positions, judge, shown
from training.evaluation.predictor import Predictor
from training.evaluation.truth import TruthError, read_landmarks
from training.evaluation.validate import fold_manifest
from training.recipe.load import load_named, names_of
from training.recipe.schema import PROFILES, Profile, RecipeError
from training.runs import RunFolder, UnusableRun, read_run

MEAN_SHAPE = "mean shape (always the average position)"
ALL_RECIPES = "all recipes together"


class BenchError(Exception):
    """Nothing to measure, or nothing to measure it on."""


@dataclass(frozen=True)
class FinishedRecipe:
    """The finished localisers of one recipe, by their names in it, and how many it has in all."""

    recipe: str
    localisers: dict[str, LoadedMember]
    asked: int
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
        """What it locates in a study, and the seconds that took beyond those of the localisers before it."""
        before = locate([study], self.first, self.expectation)[0] if self.first else Located()
        started = time.perf_counter()
        if not self.alone:
            located = locate([study], self.localisers, self.expectation)[0]
        else:
            scene = InputCache([study], [before.points])
            (said,) = answers_of(scene, self.localisers[0], [before.confidence], True)
            located = Located({row: answer.point for row, answer in said.items()})
        return located, time.perf_counter() - started

    @property
    def rows(self) -> list[str]:
        """The landmarks that it is asked for."""
        named = {row for localiser in self.localisers for row in answered(localiser.member)}
        return [row for row in ROWS if row in named]

    @property
    def slices_only(self) -> bool:
        """Whether it only says which slice shows a landmark."""
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
    """The finished localisers of each recipe; how to train the others is said on standard error.

    Raises BenchError where there is none at all.
    """
    device = default_device()
    found = []
    for name in names:
        recipe = load_named(name, profile)
        folder = RunFolder(runs, recipe)
        members = {local: entry for local, entry in zip(recipe.localisers, recipe.members(), strict=False)}
        done = {key: one for key, one in members.items() if read_run(folder.job(one.member.name, fold), one)}
        if missing := [local for local in members if local not in done]:
            train = f"make train-all DATA={data} RUNS={runs} RECIPES={name} PROFILE={profile} FOLDS={fold}"
            print(f"{name}: not trained, or by another recipe: {', '.join(missing)} ({train})", file=sys.stderr)
        if not done:
            continue
        predictor = Predictor(fold_manifest(folder, list(done.values()), fold), folder.profile, device)
        for problem in predictor.problems:
            print(f"{name}: left out: {problem.detail}", file=sys.stderr)
        full_names = {f"{entry.member.name}_fold{fold}": local for local, entry in done.items()}
        loaded = {full_names[key]: one for key, one in predictor.members.items()}
        if loaded:
            found.append(FinishedRecipe(name, loaded, len(members), predictor.expectation))
    if not found:
        raise BenchError(f"{runs} holds no finished localiser of profile {profile}, fold {fold}: train one first")
    return found


def candidates(finished: Sequence[FinishedRecipe]) -> list[Candidate]:
    """All rows but the mean shape: recipe by recipe its localisers and its whole set, then everybody together."""
    rows = []
    for one in finished:
        for local, localiser in one.localisers.items():
            first = _starters(localiser, one.localisers)
            name = f"{one.recipe} {local}" + (f" after {', '.join(first)}" if first else "")
            rows.append(Candidate(name, (localiser,), one.expectation, True, tuple(first.values())))
        missing = one.asked - len(one.localisers)
        name = f"{one.recipe} together" + (f" ({missing} of {one.asked} missing)" if missing else "")
        rows.append(Candidate(name, tuple(one.localisers.values()), one.expectation))
    if len(finished) > 1:
        everybody = tuple(localiser for one in finished for localiser in one.localisers.values())
        rows.append(Candidate(ALL_RECIPES, everybody, finished[0].expectation))
    return rows


def _starters(localiser: LoadedMember, others: dict[str, LoadedMember]) -> dict[str, LoadedMember]:
    """Those of its recipe that find what a localiser starts from, and what these start from; no fellow refiners."""
    found: set[str] = set()
    wanted = needed(localiser.member)
    while wanted:
        finders = {name: set(answered(one.member)) - needed(one.member) for name, one in others.items()}
        new = {name for name, rows in finders.items() if name not in found and wanted & rows}
        found |= new
        wanted = {row for name in new for row in needed(others[name].member)}
    return {name: other for name, other in others.items() if name in found and other is not localiser}


def measure(data: Path, truth: Mapping[str, Points], rows: Sequence[Candidate], offsets: Points) -> dict[str, Any]:
    """Findings as a table, seconds by row, landmarks that no slice shows, and what went wrong, by kind and member."""
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
            judged = judge(study.study_id, true, slices, located.points, row.rows, located.guessed, row.slices_only)
            findings += [{"localiser": row.name} | one for one in judged]
        average = average_positions(study, offsets)
        findings += [{"localiser": MEAN_SHAPE} | one for one in judge(study.study_id, true, slices, average)]
        problems.update({(one.kind, one.where) for one in study.problems if one.where in names})
    if not findings:
        raise BenchError(f"no slice of {data / 'test_images'} shows a true landmark: make the phantom again")
    return {"findings": pd.DataFrame(findings), "seconds": seconds, "hidden": hidden, "problems": problems}


def bench(data: Path, runs: Path, out: Path, names: Sequence[str], profile: Profile, fold: int, jobs: int) -> str:
    """The tables as text; locating.json and locating.png are left in `out`."""
    truth = read_landmarks(data, "test")
    if not truth:
        raise BenchError(f"{data / 'truth'} names no test study: make a phantom with some (--test)")
    if absent := [study for study in truth if not (data / "test_images" / study).is_dir()]:
        raise BenchError(f"{data / 'test_images'} lacks {len(absent)} of {len(truth)} studies, {absent[0]} among them")
    out.mkdir(parents=True, exist_ok=True)
    rows = candidates(find_finished(runs, names, profile, fold, data))
    training = build_cache(data, read_tables(data), [], runs / "cache", jobs).points
    measured = measure(data, truth, rows, average_offsets(list(training.values())))
    findings = measured["findings"]
    ms = {name: 1e3 * float(np.median(took)) for name, took in measured["seconds"].items()}
    costs = {row.name: {**row.cost(), "ms": ms[row.name]} for row in rows}
    text, numbers = report(findings, costs)
    device = "CUDA" if torch.cuda.is_available() else f"the CPU, threads: {torch.get_num_threads()}"
    remarks = [
        f"{findings['study'].nunique()} test studies, profile {profile}, fold {fold}, on {device}; "
        f"{measured['hidden']} true landmarks that no slice shows are left out",
        "found: not guessed from the others; right slice: that of the truth or one beside it; after: started from what "
        "these found",
        *(f"{count} studies with {kind} of {where}" for (kind, where), count in measured["problems"].most_common()),
    ]
    replace_json(out / "locating.json", {"remarks": remarks, "localisers": numbers})
    draw_curves(findings, out / "locating.png")
    return "\n".join([text, "", *remarks])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.  What is missing ends it with one sentence."""
    parser = argparse.ArgumentParser(prog="training.benchmarks.localisers", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a phantom data set")
    parser.add_argument("--runs", type=Path, required=True, help="where training left its runs")
    parser.add_argument("--recipes", nargs="*", default=[], help="names of training/recipes; default: all")
    parser.add_argument("--profile", choices=PROFILES, default="bench")
    parser.add_argument("--fold", type=int, default=0, help="the fold whose localisers are measured")
    parser.add_argument("--out", type=Path, help="for locating.json and locating.png; default: --runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that decode; 1 or more")
    given = parser.parse_args(argv)
    names = names_of(given.recipes)
    out = given.out or given.runs
    try:
        print(bench(given.data, given.runs, out, names, given.profile, given.fold, given.jobs))
    except (BenchError, TruthError, TablesError, RecipeError, CacheError, UnusableRun, OSError) as error:
        print(f"bench-locate stopped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
