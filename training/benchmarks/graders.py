"""Every trained grader on the same phantom test studies: tables, and what an ensemble of all of them is worth.

    python -m training.benchmarks.graders --data DIR --runs RUNS [--profile bench] [--recipes a b] [--fold 0]

A row is a grader, all graders of a recipe with the recipe's weights, or an ensemble.  Scores: out of fold, on studies
that the fold held out; and on the test studies at the landmarks of the recipe's own localisers ("own"), at those on
which all localisers agree ("agreed"), and at the true ones ("true").  The text goes to standard output; grading.json
goes to --out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels.lumbar.labels import GROUPS, SEVERITIES
from kernels.lumbar.run.submission import replace_json
from training.benchmarks.grader_answers import OWN, System, find_system, grade_test_studies, labels_of
from training.benchmarks.grader_tables import FOUND, FREELY, OUT_OF_FOLD, SIDE_BY_SIDE, Row, tables_of
from training.benchmarks.grader_verdicts import Scored, foretold_lines, gain_lines, gains_over, noise_line, rivals
from training.data import out_of_fold
from training.data.out_of_fold import Answers, Average, OutOfFoldError, Rule
from training.ensemble.crossfit import cross_fit
from training.ensemble.find import search
from training.ensemble.result import SearchResult
from training.ensemble.search import Ensemble, MemberCosts, SearchError, best_ensemble
from training.ensemble.sources import read_costs, read_priors, standing_of
from training.ensemble.strategies import FREE, Standing, side_by_side
from training.evaluation.intervals import intervals
from training.evaluation.json_safe import finite
from training.evaluation.truth import TruthError, read_solution
from training.recipe.load import load_named, names_of
from training.recipe.schema import PROFILES, Profile, RecipeError
from training.runs import UnusableRun

PLAIN = np.ones((len(GROUPS), len(SEVERITIES)))


class BenchError(Exception):
    """Nothing to measure, or nothing to measure it on."""


@dataclass(frozen=True)
class GraderPlan:
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
    costs: MemberCosts
    remarks: list[str]
    cross_fitted: dict[str, np.ndarray]
    """Of what was fitted: (N, 25, 3), what fits without a held-out study say of it."""
    plans: dict[str, GraderPlan]
    systems: tuple[str, ...]
    """The plans that are a recipe's."""

    def predicted(self) -> dict[str, dict[str, Scored]]:
        """out_of_fold, own, agreed or true → row of the table → predictions, none by what was fitted to them."""
        parts: Mapping[str, Answers] = {OUT_OF_FOLD: self.held_out} | self.test
        made = {
            where: {name: Scored(part.labels, plan.predict(part)) for name, plan in self.plans.items()}
            for where, part in parts.items()
        }
        for name, rows in self.cross_fitted.items():
            made[OUT_OF_FOLD][name] = Scored(self.held_out.labels, rows)
        return made


def plans_of(
    standing: Sequence[Standing], answers: Answers, rule: Rule, free: Ensemble, result: SearchResult
) -> dict[str, GraderPlan]:
    """Every grader alone, every recipe, all recipes side by side, free weights of all, and what the search found."""
    together = side_by_side(answers, standing, rule.average)
    plans = {}
    for name, weights in zip(together.members, together.weights, strict=True):
        groups = tuple(group for group, weight in zip(GROUPS, weights, strict=True) if weight > 0)
        plans[name.partition("/")[2]] = GraderPlan(Ensemble((name,), np.ones((1, len(GROUPS))), PLAIN), rule, groups)
    for one in standing:
        plans[one.name] = GraderPlan(one.ensemble(answers), rule)
    if len(standing) > 1:
        plans[SIDE_BY_SIDE] = GraderPlan(together, rule)
    plans[FREELY] = GraderPlan(free, rule)
    found = np.array([[its[group] for group in GROUPS] for its in result.weights.values()])
    multipliers = np.array([result.multipliers[group] for group in GROUPS])
    average: Average = "logits" if result.average == "logits" else "probabilities"
    plans[FOUND] = GraderPlan(Ensemble(tuple(result.weights), found, multipliers, average), rule)
    return plans


def measure(data: Path, runs: Path, systems: Sequence[System], fold: int) -> Measured:
    """Grade the test studies, and search the best ensemble on the held-out ones."""
    test = grade_test_studies(data, runs, systems, fold, labels_of(read_solution(data)))
    held_out = out_of_fold.answers_of(out_of_fold.read([system.folder.out_of_fold(fold) for system in systems]))
    rule = Rule("logits", read_priors([system.folder.priors for system in systems]))
    costs, remark = read_costs([system.folder.seconds for system in systems], held_out.members)
    standing = [standing_of(system.folder.recipe) for system in systems]
    result = search(held_out, rule, costs, standing=standing)
    plans = plans_of(standing, held_out, rule, best_ensemble(held_out, rule, costs), result)
    honest = {
        name: cross_fit(held_out, rule, costs, None, standing, how).predicted
        for name, how in ((FREELY, FREE), (FOUND, result.strategy))
    }
    remarks = [f"{FOUND}: {result.reason}", *filter(None, [remark])]
    return Measured(held_out, test, costs, remarks, honest, plans, tuple(system.name for system in systems))


def rows_of(measured: Measured, predicted: Mapping[str, Mapping[str, Scored]]) -> list[Row]:
    """The table; last what knows nothing of a study."""
    rows = []
    for name, plan in measured.plans.items():
        scores = {where: intervals(its[name].labels, its[name].rows) for where, its in predicted.items()}
        rows.append(Row(name, plan.groups, measured.costs.of(plan.ensemble.members), scores))
    priors = measured.plans[FOUND].rule.prior_rows()
    labels = {where: its[FOUND].labels for where, its in predicted.items()}
    known = {where: intervals(its, np.tile(priors, (len(its), 1, 1))) for where, its in labels.items()}
    return [*rows, Row("level priors", GROUPS, 0.0, known)]


def verdicts(
    measured: Measured, rows: Sequence[Row], predicted: Mapping[str, Mapping[str, Scored]]
) -> tuple[list[str], dict[str, Any]]:
    """Lines on the found ensemble: against the best recipes, and whether its score was foretold; and the numbers."""
    test = {where: predicted[where] for where in measured.test}
    gains, lines = {}, []
    for rival in rivals(rows, measured.systems):
        gains[rival.name] = gains_over(rival.name, test)
        lines += gain_lines(rival, gains[rival.name])
    foretold, one = foretold_lines(predicted[OUT_OF_FOLD][FOUND], test[OWN][FOUND])
    lines += [*foretold, noise_line(rows, len(test[OWN][FOUND].labels))]
    return lines, {
        "gains_over": {
            rival: {name: {where: asdict(one) for where, one in its.items()} for name, its in by_mixture.items()}
            for rival, by_mixture in gains.items()
        },
        "out_of_fold_less_test": asdict(one),
    }


def bench(data: Path, runs: Path, out: Path, names: Sequence[str], profile: Profile, fold: int) -> str:
    """The table as text; grading.json is left in `out`.  Raises BenchError where nothing is finished."""
    read_solution(data)  # a folder without truth is refused before anything else
    out.mkdir(parents=True, exist_ok=True)
    found = [find_system(runs, load_named(name, profile), fold) for name in names]
    systems = [system for system in found if system is not None]
    if not systems:
        raise BenchError(f"{runs} holds no finished recipe of profile {profile}, fold {fold}: make train-all first")
    measured = measure(data, runs, systems, fold)
    predicted = measured.predicted()
    rows = rows_of(measured, predicted)
    lines, numbers = verdicts(measured, rows, predicted)
    held_out, test = len(measured.held_out.studies), len(measured.test[OWN].studies)
    remarks = [f"{held_out} held-out and {test} test studies, profile {profile}, fold {fold}", *lines]
    remarks += measured.remarks
    content = {"remarks": remarks, **numbers, "rows": [asdict(row) for row in rows]}
    replace_json(out / "grading.json", finite(content))
    return "\n".join([tables_of(rows, held_out, test), "", *remarks])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.  What is missing ends it with one sentence."""
    parser = argparse.ArgumentParser(prog="training.benchmarks.graders", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a phantom data set")
    parser.add_argument("--runs", type=Path, required=True, help="where training left its runs")
    parser.add_argument("--recipes", nargs="*", default=[], help="names of training/recipes; default: all")
    parser.add_argument("--profile", choices=PROFILES, default="bench")
    parser.add_argument("--fold", type=int, default=0, help="the fold whose graders are measured")
    parser.add_argument("--out", type=Path, help="for grading.json; default: --runs")
    given = parser.parse_args(argv)
    names = names_of(given.recipes)
    try:
        text = bench(given.data, given.runs, given.out or given.runs, names, given.profile, given.fold)
    except (BenchError, OutOfFoldError, RecipeError, SearchError, TruthError, UnusableRun, OSError) as error:
        sys.stderr.write(f"bench-grade stopped: {error}\n")
        return 1
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
