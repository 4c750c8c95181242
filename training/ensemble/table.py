"""The result of an ensemble search as text for people, and the command that comes next."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from kernels.lumbar.labels import GROUPS
from training.ensemble.result import SearchResult
from training.ensemble.strategies import RECIPE, SUBSET, TITLES
from training.evaluation.intervals import FIGURES, Difference, Interval
from training.recipe.schema import Recipe

WRITTEN = "the ensemble written"
SINGLE = "best member of each condition, by hindsight"
PARTS = "spinal foram. subar."


def reason_of(
    chosen: str,
    recipe: str,
    scores: Mapping[str, Mapping[str, Interval]],
    against: Mapping[str, Difference],
    too_dear: Collection[str],
) -> str:
    """Why this way was taken, beside the next best: a sentence."""
    others = [name for name in against if name in TITLES and name not in too_dear]
    name = f"{TITLES[chosen]} ({recipe})" if chosen == RECIPE and recipe else TITLES[chosen]
    final = scores[chosen]["final"].value
    if not others:
        return f"{name}: cross-fitted {final:.4f}, and there is no other way"
    second = min(others, key=lambda one: scores[one]["final"].value)
    gain, within = against[second], " within the budget" if too_dear else ""
    return (
        f"{name}: cross-fitted {final:.4f}, which no other way{within} is below; the next is {TITLES[second]} with "
        f"{scores[second]['final'].value:.4f} (difference {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], "
        f"{gain.verdict})"
    )


def table_of(result: SearchResult) -> str:
    """The result as a table."""
    return "\n".join([*_scores(result), "", *_members(result), "", *_order(result)])


def _scores(result: SearchResult) -> list[str]:
    names = {name: _title(name) for name in result.scores}
    width = max(map(len, [*names.values(), WRITTEN]))
    heading = (
        f"{f'out-of-fold score, {result.studies} studies':{width}} {PARTS} any s.   mean {'[95 %]':16} {result.unit}"
    )
    lines = [f"{heading}  {WRITTEN} less this [95 %]"]
    for name, its in result.scores.items():
        final, cost = its["final"], result.costs[name]
        parts = " ".join(f"{its[part].value:6.4f}" for part in FIGURES)
        dear = " over the budget" if result.budget is not None and cost > result.budget else ""
        gain = f"  {_gain(result.against[name])}" if name in result.against else ""
        whole = f"{parts} [{final.low:.4f}, {final.high:.4f}] {cost:{len(result.unit)}.2f}"
        lines.append(f"{names[name]:{width}} {whole}{gain}{dear}")
    fitted = f"on the rows it was fitted on it scores {result.fitted_score:.4f}"
    return [*lines, f"written: {result.reason}", fitted]


def _title(name: str) -> str:
    return {"cross_fitted": WRITTEN, "best_single": SINGLE}.get(name) or TITLES.get(name, f"{name} as it stands")


def _gain(gain: Difference) -> str:
    return f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] {gain.verdict}"


def _members(result: SearchResult) -> list[str]:
    """By condition, each member that grades it, the best first."""
    width = max(len(name) for name in [*result.members, f"{GROUPS[-1]}: each member that grades it, alone"])
    lines = []
    for group in GROUPS:
        graders = [name for name, one in result.members.items() if group in one.against_best]
        ranked = sorted(graders, key=lambda name: result.members[name].scores[group].value)
        severe = " any s." if group == "spinal" else ""
        title = f"{group}: each member that grades it, alone"
        lines.append(f"{title:{width}}   loss {'[95 %]':16}{severe}  less the best [95 %]")
        for name in ranked:
            member = result.members[name]
            own = member.scores[group]
            value = f"{name:{width}} {own.value:6.4f} [{own.low:.4f}, {own.high:.4f}]"
            any_severe = f" {member.scores['any_severe'].value:6.4f}" if severe else ""
            lines.append(f"{value}{any_severe}  {'best' if name == ranked[0] else _gain(member.against_best[group])}")
    return lines


def _order(result: SearchResult) -> list[str]:
    width = max(len(name) for name in [*result.order, "class multipliers, subarticular"])
    lines = [f"{'run order and weights':{width}} {PARTS} {result.unit:>9}  score so far, on its own rows"]
    for step in result.curve:
        weights = " ".join(f"{result.weights[step.member][group]:6.3f}" for group in GROUPS)
        lines.append(f"{step.member:{width}} {weights} {step.seconds:9.2f}  {step.score:.4f}")
    lowest = min(result.curve, key=lambda step: step.score)
    if lowest is not result.curve[-1]:
        best = result.scores[SUBSET]["final"].value
        lines.append(
            f"after {lowest.member} the score rises, but only on these rows, by which the order was chosen: "
            f"cross-fitted, the best part of all scores {best:.4f}"
        )
    if any(value != 1 for values in result.multipliers.values() for value in values):
        for group, values in result.multipliers.items():
            lines.append(f"{f'class multipliers, {group}':{width}} " + " ".join(f"{value:6.3f}" for value in values))
    if result.left_to_priors:
        lines.append(f"nobody answers {', '.join(result.left_to_priors)} better than the priors, which stand in")
    return lines


def next_step(
    result: SearchResult, out: Path, runs: Path, profile: str, recipes: Sequence[Recipe], folds: tuple[int, ...]
) -> list[str]:
    """What was written and what it costs; and the command that packages it."""
    used = sorted({name.partition("/")[0] for name in result.order})
    limit = "no budget" if result.budget is None else f"budget {result.budget:g}"
    its_own = [recipe.train_folds or tuple(range(recipe.folds)) for recipe in recipes if recipe.name in used]
    some = [f"FOLDS={shlex.quote(' '.join(map(str, folds)))}"] if any(one != folds for one in its_own) else []
    given = [f"RUNS={shlex.quote(str(runs))}", f"PROFILE={profile}", f"RECIPES={shlex.quote(' '.join(used))}", *some]
    return [
        f"{out}: {len(result.order)} members of {', '.join(used)}, {result.seconds:.2f} {result.unit} a study, {limit}",
        f"next: make package {' '.join(given)} ENSEMBLE={shlex.quote(str(out))}",
    ]
