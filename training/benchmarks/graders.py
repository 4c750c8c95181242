"""Every trained grader on the same test studies: tables, and what an ensemble of all of them is worth.

    python -m training.benchmarks.graders --data DIR --runs RUNS [--profile bench] [--recipes a b] [--fold 0]

A row is a grader, all graders of a recipe with the recipe's weights, a way to mix all of them, or the mixture that
`make ensemble` takes.  Scores: out of fold, on studies that the fold held out; and on the test studies at the landmarks
of the recipe's own localisers ("own"), at those of all localisers together ("agreed"), and at the true ones ("true").
The text goes to standard output; grading.json goes to --out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kernels.commands import ends_with_a_sentence
from kernels.lumbar.labels import GROUPS, SEVERITIES
from kernels.lumbar.run.submission import replace_json
from kernels.profiles import Profile
from training.benchmarks.command import trained_parser
from training.benchmarks.grader_answers import (
    AGREED,
    OWN,
    TRUE,
    find_system,
    grade_test_studies,
    held_out_answers,
    labels_of,
)
from training.benchmarks.tables import BenchError, Table
from training.data.out_of_fold import Answers, Average, OutOfFoldError, Rule
from training.ensemble.find import search
from training.ensemble.result import SearchResult
from training.ensemble.search import Ensemble, SearchError
from training.ensemble.sources import read_costs, recipe_weights_of
from training.ensemble.strategies import TITLES as WAYS
from training.ensemble.strategies import CrossFit, RecipeWeights, side_by_side, strategies
from training.evaluation.intervals import FIGURES, Difference, Interval, difference, intervals, unpaired
from training.evaluation.json_safe import finite
from training.evaluation.truth import TruthError, read_solution, score_name
from training.recipe_schema.load import load_named, names_of
from training.recipe_schema.schema import RecipeError
from training.runs import UnusableRun

OUT_OF_FOLD = "out_of_fold"
TITLES = {
    OUT_OF_FOLD: "out of fold",
    OWN: "own landmarks",
    AGREED: "agreed landmarks",
    TRUE: "true landmarks",
}
FOUND = "found ensemble"
MIXTURES = (*WAYS.values(), FOUND)
PLAIN = np.ones((len(GROUPS), len(SEVERITIES)))
EXPLANATION = (
    "own landmarks: those of the recipe's own localisers; agreed: of the localisers of all recipes together; true: the "
    "data set's.  Out of fold: own landmarks, studies that the fold held out.  A dash: it does not grade this."
)
VERDICTS = {
    "better": "beats it outside of the interval",
    "worse": "is worse, outside of the interval",
    "noise": "does not beat it outside of the interval, in which 0 lies: noise",
}


@dataclass(frozen=True)
class GraderPlan:
    """What a row of the table mixes, how, and for which condition groups."""

    ensemble: Ensemble
    rule: Rule
    groups: tuple[str, ...] = GROUPS


class Scored(NamedTuple):
    """Labels (N, 25), negative = missing, and probabilities (N, 25, 3) of the same studies."""

    labels: np.ndarray
    rows: np.ndarray


Predicted = Mapping[str, Mapping[str, Scored]]
"""Key of TITLES → row of the table → predictions, none by what was fitted to them."""


@dataclass(frozen=True)
class Row:
    """A grader, a system or an ensemble."""

    name: str
    groups: tuple[str, ...]
    """The condition groups it is for: others are not shown."""
    seconds: float
    """A study, with its localisers."""
    scores: dict[str, dict[str, Interval]]
    """Key of TITLES → part of the metric → interval over studies."""

    def final(self, where: str) -> float:
        """The mean of the four parts."""
        return self.scores[where]["final"].value

    def cells(self, where: str) -> list[str]:
        """The metric's four parts and their mean; a dash for what it does not grade."""
        graded = set(self.groups) | ({"any_severe"} if "spinal" in self.groups else set())
        graded |= {"final"} if set(GROUPS) <= graded else set()
        return [_score_text(self.scores[where][part]) if part in graded else "–" for part in FIGURES]


def bench(data: Path, runs: Path, out: Path, names: Sequence[str], profile: Profile, fold: int) -> str:
    """The tables as text; grading.json is left in `out`.  Raises BenchError where nothing is finished."""
    labels = labels_of(read_solution(data))  # a folder without truth is refused before anything else
    out.mkdir(parents=True, exist_ok=True)
    found = [find_system(runs, load_named(name, profile), fold) for name in names]
    systems = [system for system in found if system is not None]
    if not systems:
        raise BenchError(f"{runs} holds no finished recipe of profile {profile}, fold {fold}: make train-all first")
    test = grade_test_studies(data, runs, systems, fold, labels)
    held_out, rule = held_out_answers(systems, fold)
    costs, cost_remark = read_costs([system.folder.seconds for system in systems], held_out.members)
    recipe_weights = [recipe_weights_of(system.folder.recipe) for system in systems]
    result = search(held_out, rule, costs, recipes=recipe_weights)
    fits = strategies(held_out, rule, costs, None, recipe_weights).fits
    plans = plans_of(recipe_weights, held_out, rule, {WAYS[name]: fit(held_out) for name, fit in fits.items()}, result)
    # Of what is fitted, the predictions of fits without the study: the others would be too good.
    cross_fitted = {
        WAYS[name]: Scored(held_out.labels, CrossFit(held_out, rule, fit).predicted) for name, fit in fits.items()
    }
    cross_fitted[FOUND] = cross_fitted[WAYS[result.strategy]]
    parts: dict[str, Answers] = {OUT_OF_FOLD: held_out, **test}
    predicted = {
        where: {name: Scored(part.labels, plan.ensemble.predict(part, plan.rule)) for name, plan in plans.items()}
        for where, part in parts.items()
    }
    predicted[OUT_OF_FOLD] |= cross_fitted
    rows = [
        Row(name, plan.groups, costs.of(plan.ensemble.members), scores_of(predicted, name))
        for name, plan in plans.items()
    ]
    priors = {
        where: {"priors": Scored(part.labels, np.tile(rule.prior_rows(), (len(part.labels), 1, 1)))}
        for where, part in parts.items()
    }
    rows.append(Row("level priors", GROUPS, 0.0, scores_of(priors, "priors")))
    lines, numbers = verdicts(rows, [system.name for system in systems], predicted)
    counts = {where: len(part.studies) for where, part in parts.items()}
    remarks = [
        f"{counts[OUT_OF_FOLD]} held-out and {counts[OWN]} test studies, profile {profile}, fold {fold}",
        *lines,
        f"{FOUND}: {result.reason}",
        *filter(None, [cost_remark]),
    ]
    replace_json(out / "grading.json", finite({"remarks": remarks, **numbers, "rows": [asdict(row) for row in rows]}))
    return "\n".join([tables_of(rows, counts, score_name(data)), "", *remarks])


def plans_of(
    recipe_weights: Sequence[RecipeWeights],
    answers: Answers,
    rule: Rule,
    mixtures: Mapping[str, Ensemble],
    result: SearchResult,
) -> dict[str, GraderPlan]:
    """Every grader alone, every recipe, all mixtures, and that of them which the search took, as it is written."""
    together = side_by_side(answers, recipe_weights, rule.average)
    plans = {}
    for name, weights in zip(together.members, together.weights, strict=True):
        groups = tuple(group for group, weight in zip(GROUPS, weights, strict=True) if weight > 0)
        plans[name.partition("/")[2]] = GraderPlan(Ensemble((name,), np.ones((1, len(GROUPS))), PLAIN), rule, groups)
    for one in recipe_weights:
        plans[one.name] = GraderPlan(one.ensemble(answers), rule)
    plans |= {name: GraderPlan(one, one.rule(rule)) for name, one in mixtures.items()}
    found = np.array([[its[group] for group in GROUPS] for its in result.weights.values()])
    multipliers = np.array([result.multipliers[group] for group in GROUPS])
    temperatures = np.array([result.temperatures[group] for group in GROUPS])
    average: Average = "logits" if result.average == "logits" else "probabilities"
    plans[FOUND] = GraderPlan(Ensemble(tuple(result.weights), found, multipliers, average, temperatures), rule)
    return plans


def scores_of(predicted: Predicted, name: str) -> dict[str, dict[str, Interval]]:
    """One row's scores, for Row.scores."""
    return {where: intervals(*its[name]) for where, its in predicted.items()}


def verdicts(rows: Sequence[Row], systems: Sequence[str], predicted: Predicted) -> tuple[list[str], dict[str, Any]]:
    """Lines on the mixtures: against the best recipes, and whether the found one's score was predicted; and numbers."""
    gains: dict[str, dict[str, dict[str, Difference]]] = {}
    lines = []
    for baseline, chosen in baselines(rows, systems).items():
        gains[baseline] = {
            name: {
                where: difference(its[name].labels, its[name].rows, its[baseline].rows)
                for where, its in predicted.items()
                if where != OUT_OF_FOLD
            }
            for name in MIXTURES
            if name in predicted[OWN]
        }
        lines += gain_lines(baseline, chosen, gains[baseline])
    held_out, test = predicted[OUT_OF_FOLD][FOUND], predicted[OWN][FOUND]
    # Different studies: both sets are drawn with replacement, each for itself.
    shift = unpaired(held_out, test)
    agrees = "inside: no disagreement is detectable" if shift.low <= 0 <= shift.high else "outside: they disagree"
    width = shift.high - shift.low
    score = next(row for row in rows if row.name == FOUND).scores[OWN]["final"]
    lines += [
        f"{FOUND}, out of fold (cross-fitted, {len(held_out.labels)} studies) less test ({len(test.labels)} studies, "
        f"{TITLES[OWN]}; unpaired, both sets drawn):",
        f"  {shift.text}  0 lies {agrees}; the interval is {width:.2f} wide: a difference below about "
        f"{width / 2:.2f} cannot be distinguished from none",
        f"on {len(test.labels)} test studies chance alone moves a score by about ± {(score.high - score.low) / 2:.2f}: "
        "differences between rows below that are noise, unless a paired interval excludes 0",
    ]
    return lines, finite({"gains_over": _as_dicts(gains), "out_of_fold_less_test": asdict(shift)})


def _as_dicts(gains: Mapping[str, Any]) -> dict[str, Any]:
    return {key: asdict(one) if isinstance(one, Difference) else _as_dicts(one) for key, one in gains.items()}


def baselines(rows: Sequence[Row], systems: Sequence[str]) -> dict[str, str]:
    """The recipes that mixtures are compared with → how each was chosen: best out of fold, best on the test studies."""
    by_name = {row.name: row for row in rows}
    by_oof = min(systems, key=lambda name: by_name[name].final(OUT_OF_FOLD))
    by_test = min(systems, key=lambda name: by_name[name].final(OWN))
    if by_oof == by_test:
        return {by_oof: "the best recipe, by its out-of-fold score as by hindsight"}
    return {
        by_oof: "the best recipe by its out-of-fold score",
        by_test: "the best recipe by hindsight, on these test studies",
    }


def gain_lines(baseline: str, chosen: str, gains: Mapping[str, Mapping[str, Difference]]) -> list[str]:
    """Whether mixtures beat a recipe: mixture → key of TITLES → it less the recipe, on the same test studies."""
    width = max(map(len, MIXTURES))
    lines = [f"less {baseline}, {chosen} (same test studies, paired; below 0 is better):"]
    for name, by_landmarks in gains.items():
        for where, one in by_landmarks.items():
            verdict = "is this very recipe" if one.is_none else VERDICTS[one.verdict]
            lines.append(f"  {name:{width}} {TITLES[where]:17} {one.text}  {verdict}")
    return lines


def tables_of(rows: Sequence[Row], counts: Mapping[str, int], score: str = "score") -> str:
    """A table of all parts for each key of TITLES, then one of the means side by side.

    `counts`: studies by key; `score`: what the scores are called.
    """
    tables = []
    for where, title in TITLES.items():
        kind = "held-out" if where == OUT_OF_FOLD else "test"
        full_title = f"{title}, {counts[where]} {kind} studies: {score} ± half of its 95 % interval"
        columns = ["", "spinal", "foraminal", "subarticular", "any severe", "mean"]
        tables.append(Table(where, full_title, columns, [[row.name, *row.cells(where)] for row in rows]))
    columns = ["", *TITLES.values(), "s a study"]
    means = Table("means", "means of those that grade all conditions, ± half of their 95 % intervals", columns)
    means.rows = [
        [row.name, *(row.cells(where)[-1] for where in TITLES), f"{row.seconds:.2f}"]
        for row in rows
        if row.cells(OUT_OF_FOLD)[-1] != "–"
    ]
    return "\n\n".join([EXPLANATION, *(table.text() for table in [*tables, means])])


def _score_text(interval: Interval) -> str:
    if not math.isfinite(interval.value):
        return "–"
    return f"{interval.value:.4f} ± {(interval.high - interval.low) / 2:.3f}"


@ends_with_a_sentence(
    "bench-grade stopped", BenchError, OutOfFoldError, RecipeError, SearchError, TruthError, UnusableRun, OSError
)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; expected errors end it with one sentence and exit code 1."""
    given = trained_parser("graders", __doc__, "grading.json").parse_args(argv)
    names = names_of(given.recipes)
    text = bench(given.data, given.runs, given.out or given.runs, names, given.profile, given.fold)
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
