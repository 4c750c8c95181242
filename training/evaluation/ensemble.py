"""Search the best ensemble of all finished runs on their out-of-fold answers.

    python -m training.evaluation.ensemble --runs RUNS --out FILE.json [--recipes A B] [--profile full] [--seconds N]

Reads RUNS/<recipe>/<profile>/out_of_fold<fold>.parquet and seconds.json, and RUNS/<recipe>/priors.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels.lumbar.labels import GROUPS, ROWS
from kernels.lumbar.submission import replace_json
from training.evaluation.ensemble_search import (
    Costs,
    SearchError,
    Step,
    best_ensemble,
    best_single,
    best_subset,
    calibrated_mean,
    cross_fitted,
    run_order,
    simple_mean,
)
from training.evaluation.intervals import FIGURES, Difference, Interval, difference, intervals
from training.evaluation.metric import pooled
from training.evaluation.out_of_fold import TRUTH, Answers, Mixture, OutOfFoldError, Rule, answers_of, read

TABLES = "out_of_fold*.parquet"


@dataclass(frozen=True)
class MemberScore:
    """One member alone; the prior stands in for what it does not answer."""

    studies: int
    """How many studies it answers at all."""
    seconds: float
    """Alone, with its localisers."""
    scores: dict[str, Interval]
    against_best: Difference
    """To the member with the lowest final score."""


@dataclass(frozen=True)
class SearchResult:
    """What was found, and what it is worth."""

    average: str
    studies: int
    weights: dict[str, dict[str, float]]
    multipliers: dict[str, list[float]]
    order: list[str]
    curve: list[Step]
    """After each member of `order`: seconds a study and the score on the rows that the weights were fitted on."""
    seconds: float
    budget: float | None
    scores: dict[str, dict[str, Interval]]
    """cross_fitted: of the whole search.  Beside it, of all members without budget: simple_mean; calibrated_mean, with
    cross-fitted multipliers; best_single, picked for each group with hindsight, so that no gain over it is flattered;
    best_subset, cross-fitted."""
    fitted_score: float
    """On the rows that it was fitted on: too good."""
    best_single: dict[str, str]
    best_subset: dict[str, list[str]]
    against_best_single: Difference
    members: dict[str, MemberScore]


def search(answers: Answers, rule: Rule, costs: Costs, seconds: float | None = None) -> SearchResult:
    """The best ensemble of these members [within `seconds` a study] and its honest score beside four baselines.

    Raises SearchError where no member fits or nothing can be cross-fitted.
    """
    labels = answers.labels
    found = best_ensemble(answers, rule, costs, seconds)
    single, subset = best_single(answers, rule), best_subset(answers, rule)
    mixed = {
        "cross_fitted": cross_fitted(answers, rule, lambda part: best_ensemble(part, rule, costs, seconds)),
        "simple_mean": simple_mean(answers, rule).predict(answers, rule),
        "calibrated_mean": cross_fitted(answers, rule, lambda part: calibrated_mean(part, rule)),
        "best_single": single.predict(answers, rule),
        "best_subset": cross_fitted(answers, rule, lambda part: best_subset(part, rule)),
    }
    curve = run_order(answers, rule, found, costs)
    return SearchResult(
        average=rule.average,
        studies=len(answers.studies),
        weights={
            name: dict(zip(GROUPS, its.tolist(), strict=True))
            for name, its in zip(found.members, found.weights, strict=True)
        },
        multipliers=dict(zip(GROUPS, found.multipliers.tolist(), strict=True)),
        order=[step.member for step in curve],
        curve=curve,
        seconds=costs.of(found.members),
        budget=seconds,
        scores={name: intervals(labels, rows) for name, rows in mixed.items()},
        fitted_score=pooled(labels, found.predict(answers, rule)).final,
        best_single={group: single.members[int(single.weights[:, at].argmax())] for at, group in enumerate(GROUPS)},
        best_subset={
            group: [name for name, its in zip(subset.members, subset.weights, strict=True) if its[at] > 0]
            for at, group in enumerate(GROUPS)
        },
        against_best_single=difference(labels, mixed["cross_fitted"], mixed["best_single"]),
        members=member_scores(answers, rule, costs),
    )


def member_scores(answers: Answers, rule: Rule, costs: Costs) -> dict[str, MemberScore]:
    """Every member alone, the best first, each with its difference to the best."""
    alone = {
        name: Mixture(answers.only(members=[name]), rule).mix(np.ones((1, len(GROUPS)))) for name in answers.members
    }
    scores = {name: intervals(answers.labels, rows) for name, rows in alone.items()}
    ranked = sorted(scores, key=lambda name: (scores[name]["final"].value, name))
    answered = ~np.isnan(answers.logits).all((2, 3))
    return {
        name: MemberScore(
            int(answered[answers.members.index(name)].sum()),
            costs.of([name]),
            scores[name],
            difference(answers.labels, alone[name], alone[ranked[0]]),
        )
        for name in ranked
    }


def table_of(result: SearchResult) -> str:
    """The result as a table for people."""
    heading = (
        f"{'out-of-fold score, ' + str(result.studies) + ' studies':52} spinal foram. subart. any s.   mean [95 %]"
    )
    lines = [heading, *(_line(name.replace("_", " "), one) for name, one in result.scores.items())]
    gain = result.against_best_single
    lines += [
        f"the fitted ensemble on its own rows: {result.fitted_score:.4f}",
        f"cross-fitted less best single: {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]: {gain.verdict}",
        "",
        "each member alone, against the best of them",
    ]
    for name, member in result.members.items():
        lines.append(f"{_line(name, member.scores)} {member.against_best.value:+.4f} {member.against_best.verdict}")
    lines += ["", f"{'run order and weights':52} spinal foram. subart. seconds score so far, on its own rows"]
    for step in result.curve:
        weights = " ".join(f"{result.weights[step.member][group]:6.3f}" for group in GROUPS)
        lines.append(f"{step.member:52} {weights} {step.seconds:8.2f} {step.score:.4f}")
    for group, values in result.multipliers.items():
        lines.append(f"class multipliers, {group:33} " + " ".join(f"{value:6.3f}" for value in values))
    return "\n".join(lines)


def _line(name: str, scores: dict[str, Interval]) -> str:
    final = scores["final"]
    return (
        f"{name:52} "
        + " ".join(f"{scores[part].value:6.4f}" for part in FIGURES)
        + f" [{final.low:.4f}, {final.high:.4f}]"
    )


def read_priors(paths: Sequence[Path]) -> dict[str, tuple[float, float, float]]:
    """The priors of the runs.  Raises SearchError where they are unreadable, incomplete or not the same."""
    found = []
    for path in paths:
        try:
            priors = json.loads(path.read_text(encoding="utf-8"))
            found.append({row: (float(priors[row][0]), float(priors[row][1]), float(priors[row][2])) for row in ROWS})
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise SearchError(f"{path} has no priors of the 25 rows: {error!r}") from error
    if any(priors != found[0] for priors in found):
        raise SearchError("the recipes were trained on different labels: their priors differ")
    return found[0]


def read_costs(paths: Sequence[Path], names: Sequence[str]) -> tuple[Costs, str]:
    """Seconds a study from the runs' seconds.json; where any is missing, 1 for each of all, and a remark on it."""
    members: dict[str, float] = {}
    located: dict[str, float] = {TRUTH: 0.0}
    for path in paths:
        try:
            measured = json.loads(path.read_text(encoding="utf-8"))
            members |= {name: float(seconds) for name, seconds in measured["members"].items()}
            located |= {name: float(seconds) for name, seconds in measured["located"].items()}
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SearchError(f"{path} does not hold seconds of members and localisers: {error!r}") from error
    pairs = {name: name.partition("/")[::2] for name in names}
    missing = [name for name, (route, member) in pairs.items() if member not in members or route not in located]
    if missing:
        routes = {route: 0.0 if route == TRUTH else 1.0 for route, _ in pairs.values()}
        return Costs(
            dict.fromkeys(names, 1.0), routes
        ), f"no measured seconds of {missing[0]}: every network counts as 1"
    return Costs({name: members[member] for name, (_, member) in pairs.items()}, located), ""


def usable(answers: Answers) -> tuple[Answers, str]:
    """Without the members that were given true landmarks, where there are others; and a remark that says so."""
    real = [name for name in answers.members if not name.startswith(f"{TRUTH}/")]
    if len(real) == len(answers.members):
        return answers, ""
    if not real:
        return answers, "all members were given true landmarks: Kaggle has none, so this score is out of reach there"
    left_out = len(answers.members) - len(real)
    return answers.only(members=real), f"members given true landmarks are left out ({left_out}): Kaggle has none"


def _json_able(value: Any) -> Any:
    """The same without NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _json_able(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_json_able(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="training.evaluation.ensemble", description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", help="default: all that have out-of-fold answers")
    parser.add_argument("--profile", default="full")
    parser.add_argument("--average", choices=("logits", "probabilities"), default="logits")
    parser.add_argument("--seconds", type=float, help="what the ensemble may cost a study; default: no limit")
    options = parser.parse_args(argv)
    try:
        recipes = options.recipes or sorted(path.name for path in options.runs.glob("*") if path.is_dir())
        profiles = [options.runs / recipe / options.profile for recipe in recipes]
        finished = [folder for folder in profiles if any(folder.glob(TABLES))]
        if not finished:
            raise SearchError(
                f"{options.runs} has no out-of-fold answers of profile {options.profile}: make train-all first"
            )
        if options.recipes and len(finished) < len(profiles):
            unfinished = next(folder for folder in profiles if folder not in finished)
            raise SearchError(f"{unfinished} has no out-of-fold answers: make train-all first, or leave its recipe out")
        answers, remark = usable(
            answers_of(read(table for folder in finished for table in sorted(folder.glob(TABLES))))
        )
        rule = Rule(options.average, read_priors([folder.parent / "priors.json" for folder in finished]))
        costs, uncosted = read_costs([folder / "seconds.json" for folder in finished], answers.members)
        result = search(answers, rule, costs, options.seconds)
        replace_json(options.out, _json_able(asdict(result)))
    except (SearchError, OutOfFoldError, OSError) as error:
        sys.stderr.write(f"no ensemble: {error}\n")
        return 1
    sys.stdout.write("\n".join(filter(None, [remark, uncosted, table_of(result)])) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
