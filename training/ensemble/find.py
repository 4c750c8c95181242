"""Search the best ensemble of all finished runs on their out-of-fold answers.

    python -m training.ensemble.find --runs RUNS --out FILE.json [--recipes A B] [--profile full] [--seconds N]
                                     [--oof DIR [--data DIR]]
                                     [--stacker mlp trees]

Reads RUNS/<recipe>/<profile>/out_of_fold<fold>.parquet and seconds.json, and RUNS/<recipe>/priors.json; and predictions
of other people's models (training/data/foreign_answers.py).
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import numpy as np

from kernels.commands import ends_with_a_sentence
from kernels.lumbar.labels import GROUPS
from kernels.lumbar.run.submission import replace_json
from training.data.folds import FoldsError
from training.data.foreign_answers import ELSEWHERE
from training.data.out_of_fold import Answers, Average, Mixture, OutOfFoldError, Rule
from training.data.tables import TablesError
from training.ensemble.result import MemberScore, SearchResult, reason_of, table_of
from training.ensemble.search import MemberCosts, SearchError, as_tested, best_single, cross_fitted, run_order
from training.ensemble.sources import OutOfFoldSources, add_sources, sources_from
from training.ensemble.stackers import KINDS, Kind
from training.ensemble.strategies import RecipeWeights, plainest_best, shipped, strategies
from training.ensemble.try_stackers import try_stackers
from training.evaluation.intervals import Difference, difference, differences, intervals
from training.evaluation.json_safe import finite
from training.evaluation.metric import pooled
from training.evaluation.ties import SAME
from training.packaging.foreign_members import read_description
from training.recipe_schema.load import names_of
from training.recipe_schema.schema import RecipeError
from training.runs import UnusableRun


def search(
    answers: Answers,
    rule: Rule,
    costs: MemberCosts,
    seconds: float | None = None,
    recipes: Sequence[RecipeWeights] = (),
    unit: str = "seconds",
    stackers: Sequence[Kind] = (),
) -> SearchResult:
    """The best ensemble of these members [within `seconds` a study] and its cross-fitted score beside simpler ones.

    `recipes`: with their own weights, of which the best may be as good as any ensemble.  `unit`: of all costs.
    `stackers`: kinds to try on top, taken only where they gain.  Raises SearchError where no member fits or nothing can
    be cross-fitted.
    """
    labels, ways = answers.labels, strategies(answers, rule, costs, seconds, recipes)
    if not (labels >= 0).any():
        raise SearchError("no study has a label: nothing can be fitted or compared")
    mixed = {name: cross_fitted(answers, rule, fit) for name, fit in ways.fits.items()}
    made = {name: as_tested(fit(answers), answers) for name, fit in ways.fits.items()}
    open_ways = {name: rows for name, rows in mixed.items() if name not in ways.over_budget}
    chosen = plainest_best(labels, open_ways, ways.level())
    found = shipped(made[chosen], answers)
    if not found.members:
        raise SearchError("no member answers better than the priors: train longer, or on more")
    single = best_single(answers, rule)
    fixed = {"best_single": single} | {f"recipe {one.name}": one.ensemble(answers) for one in recipes}
    all_rows = {"cross_fitted": mixed[chosen]} | mixed
    all_rows |= {name: one.predict(answers, rule) for name, one in fixed.items()}
    scores = {name: intervals(labels, rows) for name, rows in all_rows.items()}
    others = [name for name, rows in all_rows.items() if np.abs(rows - mixed[chosen]).max() > SAME]
    against = {name: differences(labels, mixed[chosen], all_rows[name])["final"] for name in others}
    curve = run_order(answers, rule, found, costs)
    spent = {name: costs.of(shipped(one, answers).members) for name, one in (made | fixed).items()}
    fit = ways.fits[chosen]
    tried, stacker = try_stackers(stackers, lambda part: shipped(fit(part), part), found, answers, rule)
    recipe = next((one.name for one in ways.recipes if one.ensemble(answers).members == made[chosen].members), "")
    rivals = [name for name in open_ways if name in others]
    second = min(rivals, key=lambda name: scores[name]["final"].value, default="")
    gain = difference(labels, mixed[chosen], mixed[second], level=ways.level()) if second else None
    return SearchResult(
        strategy=chosen,
        reason=reason_of(chosen, recipe, scores, ways, second, gain),
        average=found.rule(rule).average,
        studies=len(answers.studies),
        weights={
            name: dict(zip(GROUPS, its.tolist(), strict=True))
            for name, its in zip(found.members, found.weights, strict=True)
        },
        multipliers=dict(zip(GROUPS, found.multipliers.tolist(), strict=True)),
        temperatures=dict(zip(GROUPS, found.temperatures.tolist(), strict=True)),
        left_to_priors=[group for at, group in enumerate(GROUPS) if not found.weights[:, at].any()],
        order=[point.member for point in curve],
        curve=curve,
        unit=unit,
        seconds=costs.of(found.members),
        budget=seconds,
        scores=scores,
        costs={"cross_fitted": spent[chosen]} | spent,
        against=against,
        fitted_score=pooled(labels, found.predict(answers, rule)).final,
        best_single={group: single.members[int(single.weights[:, at].argmax())] for at, group in enumerate(GROUPS)},
        members=member_scores(answers, rule, costs),
        stackers=tried,
        stacker=None if stacker is None else stacker.model_dump(mode="json"),
    )


def member_scores(answers: Answers, rule: Rule, costs: MemberCosts) -> dict[str, MemberScore]:
    """Every member alone, the best first, each with its difference to the best at each group that it grades."""
    alone = {
        name: Mixture(answers.only(members=[name]), rule).mix(np.ones((1, len(GROUPS)))) for name in answers.members
    }
    scores = {name: intervals(answers.labels, rows) for name, rows in alone.items()}
    ranked = sorted(scores, key=lambda name: (scores[name]["final"].value, name))
    answered = ~np.isnan(answers.logits).all((2, 3))
    against: dict[str, dict[str, Difference]] = {name: {} for name in ranked}
    for group, grades in zip(GROUPS, answers.graded_groups().T.tolist(), strict=True):
        graders = [name for name, its in zip(answers.members, grades, strict=True) if its]
        best = min(graders, key=lambda name: scores[name][group].value, default="")
        for name in graders:
            against[name][group] = differences(answers.labels, alone[name], alone[best])[group]
    return {
        name: MemberScore(
            int(answered[answers.members.index(name)].sum()), costs.of([name]), scores[name], against[name]
        )
        for name in ranked
    }


def budget_of(text: str | None) -> float | None:
    """Seconds a study that a command line allows; None = any.  Raises SearchError."""
    try:
        seconds = None if text is None else float(text)
    except ValueError:
        seconds = math.nan
    if seconds is not None and not 0 < seconds < math.inf:
        raise SearchError(
            f"SECONDS_A_STUDY is a number above 0, such as 2.5, not '{text}'; without it there is no limit"
        )
    return seconds


@ends_with_a_sentence(
    "no ensemble", SearchError, OutOfFoldError, FoldsError, TablesError, RecipeError, UnusableRun, OSError
)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="training.ensemble.find", description=__doc__)
    add_sources(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--average", choices=get_args(Average), default="logits")
    parser.add_argument("--stacker", nargs="+", choices=KINDS, default=[], help="tried on top; taken where it gains")
    parser.add_argument("--seconds", help="what the ensemble may cost a study; default: no limit")
    options = parser.parse_args(argv)
    seconds = budget_of(options.seconds)
    if options.out.is_dir():
        raise SearchError(f"{options.out} is a folder: name a file, such as OUT={options.out / 'ensemble.json'}")
    sources = sources_from(options)
    rule = Rule(options.average, sources.priors())
    costs, uncosted = sources.costs()
    if uncosted and seconds is not None:
        foreign = f" {ELSEWHERE}/" in uncosted
        remedy = "`seconds` in its .yaml file says them" if foreign else "make train-all measures them"
        raise SearchError(f"{uncosted.partition(':')[0]}, so no budget can be kept: {remedy}")
    unit = "networks" if uncosted else "seconds"
    result = search(sources.answers, rule, costs, seconds, sources.recipe_weights(), unit, options.stacker)
    result = replace(result, unshippable=sources.unshippable())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    replace_json(options.out, finite(asdict(result)))
    remarks = [*sources.remarks, *filter(None, [uncosted])]
    sys.stdout.write("\n".join([*remarks, table_of(result), "", *_next_step(result, sources, options)]) + "\n")
    return 0


def _next_step(result: SearchResult, sources: OutOfFoldSources, options: argparse.Namespace) -> list[str]:
    """What was written and what it costs; and the command that packages it."""
    named = {Path(one).stem: one for one in names_of(options.recipes)}  # by path, where it was named so
    parts = {one.partition("/")[0] for one in result.order}
    used = sorted(named.get(name, name) for name in parts)
    limit = "no budget" if result.budget is None else f"budget {result.budget:g}"
    given = [f"RUNS={shlex.quote(str(options.runs))}", f"PROFILE={options.profile}"]
    needed = _packaged_recipes(result, sources, parts)
    given.append(f"RECIPES={shlex.quote(' '.join(sorted(named.get(name, name) for name in needed)))}")
    folds = tuple(sorted(set(sources.answers.folds.tolist())))
    if any((one.train_folds or tuple(range(one.folds))) != folds for one in sources.recipes):
        given.append(f"FOLDS={shlex.quote(' '.join(map(str, folds)))}")
    given += [f"OOF={shlex.quote(str(options.oof))}"] if ELSEWHERE in parts else []
    cost = f"{result.seconds:.2f} {result.unit} a study, {limit}"
    written = f"{options.out}: {len(result.order)} members of {', '.join(used)}, {cost}"
    held = [name for name in result.order if name in result.unshippable]
    if held:
        remedy = "to package it, add what is missing; or take their predictions out, and make ensemble again"
        return [written, *(f"{name} cannot be shipped: {result.unshippable[name]}" for name in held), remedy]
    if not needed:
        return [written, "to package it, a recipe's landmarks and priors are needed: make train-all, then RECIPES="]
    return [written, f"next: make package {' '.join(given)} ENSEMBLE={shlex.quote(str(options.out))}"]


def _packaged_recipes(result: SearchResult, sources: OutOfFoldSources, parts: set[str]) -> set[str]:
    """Recipes with members in the result, or whose localisers those from elsewhere need."""
    needed = parts - {ELSEWHERE}
    shippable = [name for name in result.order if name.startswith(f"{ELSEWHERE}/") and name not in result.unshippable]
    if sources.foreign is not None:
        landmarks = {read_description(sources.foreign, name.partition("/")[2]).landmarks for name in shippable}
        needed |= landmarks - {""}
    return needed or {folder.parent.name for folder in sources.folders[:1]}


if __name__ == "__main__":
    sys.exit(main())
