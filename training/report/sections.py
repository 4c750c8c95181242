"""The report's sections on scores: of all, by condition and level, by system, by fold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kernels.lumbar.labels import CONDITIONS, GROUPS, LEVELS
from training.data.tables import ROW_GROUPS
from training.ensemble.find import member_scores
from training.evaluation.intervals import FIGURES, RESAMPLES, Difference, Interval, difference, intervals
from training.evaluation.metric import Score, pooled
from training.evaluation.overlays import level_text
from training.report.ensemble_file import Found
from training.report.figures import folds_figure
from training.report.numbers import Cell, by_condition_and_level, by_fold
from training.report.page import Html, Section, figure, joined, note, paragraph, shaded, table, tiles, with_small
from training.report.predictions import Predicted

PARTS = ("spinal", "foraminal", "subarticular", "any severe")
NOT_TOLD = "–"
# Fits end a little apart on different machines; a cross-fitted score that differs by more is of another search.
SAME_CROSS_FIT = 1e-3


def number(value: float, digits: int = 4) -> str:
    """A number, or a dash where there is none."""
    return NOT_TOLD if math.isnan(value) else f"{value:.{digits}f}"


def span(interval: Interval) -> str:
    """[low, high]."""
    return f"[{number(interval.low)}, {number(interval.high)}]"


def member_text(name: str) -> str:
    """localiser / member, without the localiser's name in the member's."""
    located, _, member = name.partition("/")
    return f"{located} / {member.removeprefix(f'{located}_')}"


def headline(own: Predicted) -> Section:
    """The pooled score beside the priors'."""
    sources, labels = own.sources, own.labels
    honest, known = intervals(labels, own.ensemble)["final"], intervals(labels, own.priors)["final"]
    gain, parts = difference(labels, own.ensemble, own.priors), len(set(sources.answers.folds.tolist()))
    shown = {
        f"score of {own.mixture}, 95 % {span(honest)}; lower is better": number(honest.value),
        f"score of the level priors, 95 % {span(known)}": number(known.value),
        f"score less priors, 95 % [{gain.low:+.4f}, {gain.high:+.4f}]; negative is a gain": f"{gain.value:+.4f}",
        f"studies in {_counted(parts, 'fold')}, answered by networks that never saw them": str(len(labels)),
        f"members mixed, of {len(sources.answers.members)} in {_counted(len(sources.runs), 'recipe')}": (
            str(len(sources.ensemble.members))
        ),
    }
    words = [_truth_note(own.data), *(note(remark, warning=True) for remark in sources.remarks), tiles(shown)]
    if sources.found:
        words += _cross_fitted_note(sources.found, honest.value)
    words.append(
        paragraph(
            f"Against the priors, on the same resamples of studies, {own.mixture} is {_verdict(gain)}. Intervals come "
            f"from {RESAMPLES} bootstrap resamples of whole studies; with few studies most differences between systems "
            "are noise."
        )
    )
    return Section("Score", joined(words))


def _cross_fitted_note(found: Found, score: float) -> list[Html]:
    kept = found.scores["cross_fitted"]["final"].value
    fitted = number(found.fitted_score)
    same = "What ships has nothing fitted to these studies, or nothing that changes its score."
    other = (
        f"What ships is fitted on all of them; its score on these very studies, {fitted}, is too good and is told "
        "nowhere else."
    )
    words = paragraph(
        "Every score and picture of the ensemble on this page is cross-fitted: what was fitted for a study was fitted "
        "on other studies. (As the best of several ways to mix it is a shade too good still.) "
        + (same if fitted == number(score) else other)
    )
    if abs(kept - score) < SAME_CROSS_FIT:
        return [words]
    anew = f"The ensemble's file says {number(kept)}; cross-fitted anew it is {number(score)}: make ensemble again."
    return [words, note(anew, warning=True)]


def _verdict(one: Difference) -> str:
    return one.verdict if one.verdict != "noise" else "neither better nor worse beyond noise"


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _truth_note(data: Path | None) -> Html:
    if data is None:
        return note("No DATA was named, so this page cannot tell whether the studies are phantoms or patients.")
    if (data / "truth").exists():
        return note("The studies are phantoms, not patients: these scores promise nothing for real ones.", warning=True)
    return note("DATA holds no phantom truth: the studies are taken to be real ones.")


def conditions(own: Predicted) -> Section:
    """Condition × level, beside the priors."""
    cells = by_condition_and_level(own.labels, own.ensemble, own.priors)
    rows = [
        [condition.replace("_", " "), *(_cell(cells[condition, level]) for level in (*LEVELS, "all"))]
        for condition in CONDITIONS
    ]
    made, known = intervals(own.labels, own.ensemble)["any_severe"], intervals(own.labels, own.priors)["any_severe"]
    content = [
        table(
            f"Weighted log loss (no unit; severities count 1, 2, 4) of {own.mixture}; beneath it that of the level "
            "priors and the number of labelled rows. Blue: the share of the priors' loss that is gone.",
            ["condition", *(level_text(level) for level in LEVELS), "all levels"],
            rows,
        ),
        paragraph(
            f"Any severe canal stenosis in the study: {number(made.value)} {span(made)}, "
            f"priors {number(known.value)} {span(known)}."
        ),
    ]
    return Section("Conditions and levels", joined(content))


def _cell(cell: Cell) -> Html:
    gone = 0.0 if math.isnan(cell.loss) or cell.prior <= 0 else 1 - cell.loss / cell.prior
    return shaded(with_small(number(cell.loss, 3), f"priors {number(cell.prior, 3)}", f"{cell.rows} rows"), gone)


def systems(own: Predicted) -> Section:
    """Recipes and members: parts, intervals, seconds."""
    sources = own.sources
    seconds = sources.costs.of(sources.ensemble.members)
    rows = [_scored(_titled(own), intervals(own.labels, own.ensemble), seconds)]
    for run in sources.runs:
        names = sources.system(run)[0].members
        rows.append(_scored(run.name, intervals(own.labels, own.systems[run.name]), sources.costs.of(names)))
    strong = list(range(len(rows)))
    for name, one in member_scores(sources.answers, sources.rule, sources.costs).items():
        spoken = ~np.isnan(sources.answers.logits[sources.answers.members.index(name)]).all((0, 2))
        groups = {GROUPS[group] for group in ROW_GROUPS[spoken]}
        rows.append(_scored(member_text(name), one.scores, one.seconds, groups))
    caption = (
        "Out-of-fold log loss by part of the metric, their mean with its 95 % interval, and seconds a study with "
        "localisers. Recipes are shaded, with their own weights; members follow, the best first."
    )
    headings = ["mixture, recipe or member", *PARTS, "mean", "95 %", "seconds a study"]
    words = "A dash: the member does not grade this. A mean is shown for those that grade all conditions."
    return Section("Systems", joined([table(caption, headings, rows, strong), paragraph(words), _best_recipe(own)]))


def _titled(own: Predicted) -> str:
    return f"{own.mixture} (cross-fitted)" if own.sources.found else own.mixture


def _best_recipe(own: Predicted) -> Html:
    """What mixing is worth over the best recipe alone."""
    best = min(own.systems, key=lambda name: pooled(own.labels, own.systems[name]).final)
    if np.allclose(own.ensemble, own.systems[best]):
        return paragraph(f"{own.mixture.capitalize()} is {best} itself, the best recipe here.")
    gain = difference(own.labels, own.ensemble, own.systems[best])
    return paragraph(
        f"On the same resamples of studies, {_titled(own)} less {best}, the best recipe here, is {gain.value:+.4f} "
        f"[{gain.low:+.4f}, {gain.high:+.4f}]: {_verdict(gain)}."
    )


def _scored(name: str, scores: dict[str, Interval], seconds: float, groups: set[str] | None = None) -> list[str]:
    told = set(GROUPS) if groups is None else groups
    parts = [
        number(scores[part].value) if part in told or (part == "any_severe" and "spinal" in told) else NOT_TOLD
        for part in FIGURES[:-1]
    ]
    final = scores["final"]
    whole = [number(final.value), span(final)] if told == set(GROUPS) else [NOT_TOLD, NOT_TOLD]
    return [name, *parts, *whole, f"{seconds:.2f}"]


def folds(own: Predicted) -> Section:
    """How the score differs from fold to fold."""
    split = own.sources.answers.folds
    ours, known = by_fold(split, own.labels, own.ensemble), by_fold(split, own.labels, own.priors)
    each = {name: by_fold(split, own.labels, rows) for name, rows in own.systems.items()}
    parts = [
        [f"fold {fold}", str(int((split == fold).sum())), *_parts(score), number(known[fold].final)]
        for fold, score in ours.items()
    ]
    lines = {_titled(own): ours} | each | {"level priors": known}
    finals_of = {name: {fold: score.final for fold, score in its.items()} for name, its in lines.items()}
    content = [
        table(f"Log loss of {_titled(own)}, by fold.", ["fold", "studies", *PARTS, "mean", "priors"], parts),
        _beside(finals_of),
    ]
    if len(ours) < 2:
        content.append(paragraph("One fold alone has no spread: train others with FOLDS."))
    else:
        finals = [score.final for score in ours.values()]
        content.append(
            paragraph(
                f"Between folds the mean has a standard deviation of {np.std(finals, ddof=1):.4f} "
                f"(from {min(finals):.4f} to {max(finals):.4f})."
            )
        )
        content.append(figure(folds_figure(finals_of), "Score by fold; the table above has the numbers."))
    return Section("Folds", joined(content))


def _beside(finals: Mapping[str, Mapping[int, float]]) -> Html:
    """A row for each mixture: however many there are, the table is no wider."""
    headings = ["mean of", *(f"fold {fold}" for fold in next(iter(finals.values())))]
    rows = [[name, *(number(score) for score in its.values())] for name, its in finals.items()]
    return table("The same mean beside those of the recipes and of the level priors.", headings, rows, [0])


def _parts(score: Score) -> list[str]:
    return [number(getattr(score, name)) for name in FIGURES]
