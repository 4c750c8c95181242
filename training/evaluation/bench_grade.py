"""Every trained grader on the same phantom test studies: one table, and what an ensemble of all of them is worth.

    python -m training.evaluation.bench_grade --data DIR --runs RUNS [--profile bench] [--recipes a b] [--fold 0]

A row is a grader, all graders of a recipe with the recipe's weights, or an ensemble.  Scores: out of fold, on studies
that the fold held out; and on the test studies at the landmarks of the recipe's own localisers, at those on which all
localisers agree, and at the true ones.  The text goes to standard output; grading.json goes to --out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kernels.lumbar.labels import GROUPS, SEVERITIES
from kernels.lumbar.submission import replace_json
from training.evaluation import out_of_fold
from training.evaluation.ensemble import SearchResult, read_costs, read_priors, search
from training.evaluation.ensemble_search import Costs, Ensemble, SearchError
from training.evaluation.grading import OWN, System, find_system, grade_test_studies, labels_of
from training.evaluation.grading_report import OUT_OF_FOLD, Row, finite, table_of
from training.evaluation.intervals import Difference, difference, intervals
from training.evaluation.out_of_fold import Answers, OutOfFoldError, Rule
from training.evaluation.truth import TruthError, read_solution
from training.packing import UnusableRun
from training.recipe import Profile, RecipeError
from training.train_all import RECIPES, load_named

FOUND = "found ensemble"
PLAIN = np.ones((len(GROUPS), len(SEVERITIES)))


class BenchError(Exception):
    """Nothing to measure, or nothing to measure it on."""


@dataclass(frozen=True)
class Plan:
    """What a row of the table mixes, how, and for which condition groups."""

    ensemble: Ensemble
    rule: Rule
    groups: tuple[str, ...] = GROUPS

    def predict(self, answers: Answers) -> np.ndarray:
        """(N, 25, 3) probabilities."""
        return self.ensemble.predict(answers, self.rule)


@dataclass(frozen=True)
class Measured:
    """Everything that the table is made of."""

    held_out: Answers
    test: dict[str, Answers]
    """By whose landmarks were looked at."""
    costs: Costs
    remark: str
    result: SearchResult
    plans: dict[str, Plan]
    systems: tuple[str, ...]
    """The plans that are a recipe's."""


def weights_of(system: System, names: Sequence[str]) -> np.ndarray:
    """(M, 3 groups): what the recipe weighs its graders with, 0 for those of others."""
    own = {f"{system.name}/{one.pooled_as}": dict(one.weight) for one in system.graders}
    return np.array([[float(own.get(name, {}).get(group, 0.0)) for group in GROUPS] for name in names])  # type: ignore[call-overload]


def plans_of(systems: Sequence[System], names: tuple[str, ...], rule: Rule, result: SearchResult) -> dict[str, Plan]:
    """Every grader alone, every recipe, all recipes side by side, and what the search found."""
    by_recipe = {system.name: weights_of(system, names) for system in systems}
    together = np.sum(list(by_recipe.values()), axis=0)
    plans = {}
    for at, name in enumerate(names):
        groups = tuple(group for group, weight in zip(GROUPS, together[at], strict=True) if weight > 0)
        plans[name.partition("/")[2]] = Plan(Ensemble((name,), np.ones((1, len(GROUPS))), PLAIN), rule, groups)
    for system in systems:
        own = Rule(system.folder.recipe.average, rule.priors)
        plans[system.name] = Plan(_some(names, by_recipe[system.name]), own)
    if len(systems) > 1:
        plans["all recipes side by side"] = Plan(_some(names, together), rule)
    found = np.array([[its[group] for group in GROUPS] for its in result.weights.values()])
    multipliers = np.array([result.multipliers[group] for group in GROUPS])
    plans[FOUND] = Plan(Ensemble(tuple(result.weights), found, multipliers), rule)
    return plans


def _some(names: tuple[str, ...], weights: np.ndarray) -> Ensemble:
    kept = np.flatnonzero(weights.sum(1))
    return Ensemble(tuple(names[at] for at in kept), weights[kept], PLAIN)


def measure(data: Path, runs: Path, systems: Sequence[System], fold: int) -> Measured:
    """Grade the test studies, and search the best ensemble on the held-out ones."""
    test = grade_test_studies(data, runs, systems, fold, labels_of(read_solution(data)))
    held_out = out_of_fold.answers_of(out_of_fold.read([system.folder.out_of_fold(fold) for system in systems]))
    rule = Rule("logits", read_priors([system.folder.priors for system in systems]))
    costs, remark = read_costs([system.folder.seconds for system in systems], held_out.members)
    result = search(held_out, rule, costs)
    plans = plans_of(systems, held_out.members, rule, result)
    return Measured(held_out, test, costs, remark, result, plans, tuple(system.name for system in systems))


def rows_of(measured: Measured) -> list[Row]:
    """The table; last what knows nothing of a study.  The found ensemble's score out of fold is cross-fitted."""
    parts: Mapping[str, Answers] = {OUT_OF_FOLD: measured.held_out} | measured.test
    rows = []
    for name, plan in measured.plans.items():
        scores = {where: intervals(part.labels, plan.predict(part)) for where, part in parts.items()}
        if name == FOUND:
            scores[OUT_OF_FOLD] = measured.result.scores["cross_fitted"]
        rows.append(Row(name, plan.groups, measured.costs.of(plan.ensemble.members), scores))
    priors = measured.plans[FOUND].rule.prior_rows()
    known = {where: intervals(part.labels, np.tile(priors, (len(part.studies), 1, 1))) for where, part in parts.items()}
    return [*rows, Row("level priors", GROUPS, 0.0, known)]


def verdicts(measured: Measured, rows: Sequence[Row]) -> tuple[list[str], dict[str, Difference]]:
    """Lines on the found ensemble: against the best recipe, and whether its score was foretold."""
    by_name = {row.name: row for row in rows}
    best = min(measured.systems, key=lambda name: by_name[name].final(OWN))
    new, old = measured.plans[FOUND], measured.plans[best]
    test = measured.test
    gains = {where: difference(part.labels, new.predict(part), old.predict(part)) for where, part in test.items()}
    lines = [
        f"{FOUND} less {best}, the best recipe, test studies, {where} landmarks: "
        f"{one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}], {one.verdict}"
        for where, one in gains.items()
    ]
    honest, seen = measured.result.scores["cross_fitted"]["final"], by_name[FOUND].scores[OWN]["final"]
    agree = "agree" if honest.low <= seen.high and seen.low <= honest.high else "do not agree"
    lines.append(
        f"{FOUND}: {honest.value:.4f} [{honest.low:.4f}, {honest.high:.4f}] foretold by cross-fitting, "
        f"{seen.value:.4f} [{seen.low:.4f}, {seen.high:.4f}] on the test studies: the intervals {agree}"
    )
    return lines, gains


def bench(data: Path, runs: Path, out: Path, names: Sequence[str], profile: Profile, fold: int) -> str:
    """The table as text; grading.json is left in `out`.  Raises BenchError where nothing is finished."""
    read_solution(data)  # a folder without truth is refused before anything else
    out.mkdir(parents=True, exist_ok=True)
    found = [find_system(runs, load_named(name, profile), fold) for name in names]
    systems = [system for system in found if system is not None]
    if not systems:
        raise BenchError(f"{runs} holds no finished recipe of profile {profile}, fold {fold}: make train-all first")
    measured = measure(data, runs, systems, fold)
    rows = rows_of(measured)
    lines, gains = verdicts(measured, rows)
    studies = len(measured.held_out.studies), len(measured.test[OWN].studies)
    remarks = [f"{studies[0]} held-out and {studies[1]} test studies, profile {profile}, fold {fold}", *lines]
    remarks += [measured.remark] if measured.remark else []
    content = {"remarks": remarks, "gains": {where: asdict(one) for where, one in gains.items()}}
    replace_json(out / "grading.json", finite(content | {"rows": [asdict(row) for row in rows]}))
    return "\n".join([table_of(rows), "", *remarks])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.  What is missing ends it with one sentence."""
    parser = argparse.ArgumentParser(prog="training.evaluation.bench_grade", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a phantom data set")
    parser.add_argument("--runs", type=Path, required=True, help="where training left its runs")
    parser.add_argument("--recipes", nargs="*", default=[], help="names of training/recipes; default: all")
    parser.add_argument("--profile", choices=["smoke", "bench", "full"], default="bench")
    parser.add_argument("--fold", type=int, default=0, help="the fold whose graders are measured")
    parser.add_argument("--out", type=Path, help="for grading.json; default: --runs")
    given = parser.parse_args(argv)
    names = given.recipes or sorted(path.stem for path in RECIPES.glob("*.yaml"))
    try:
        text = bench(given.data, given.runs, given.out or given.runs, names, given.profile, given.fold)
    except (BenchError, OutOfFoldError, RecipeError, SearchError, TruthError, UnusableRun, OSError) as error:
        sys.stderr.write(f"bench-grade stopped: {error}\n")
        return 1
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
