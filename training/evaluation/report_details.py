"""The report's sections on what lies behind the scores: calibration, seconds, landmarks and the worst rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kernels.lumbar.labels import GROUPS, ROWS, SEVERITIES
from training.evaluation.ensemble_search import run_order
from training.evaluation.intervals import FIGURES
from training.evaluation.landmarks import VIEW_OF_GROUP, LandmarkError
from training.evaluation.metric import pooled
from training.evaluation.overlays import KIND_TITLES
from training.evaluation.report_cases import picture_of, row_text
from training.evaluation.report_figures import gain_figure, reliability_figure, severity_text
from training.evaluation.report_measures import Case, confusion, reliability, worst
from training.evaluation.report_page import Html, Section, figure, joined, paragraph, shaded, table, tag, with_small
from training.evaluation.report_sections import NOT_TOLD, PARTS, Predicted, member_text, number, span
from training.evaluation.report_sources import Found, Sources


def calibration(own: Predicted) -> Section:
    """Reliability curves and confusion."""
    curves = {
        (group, severity): reliability(own.labels, own.ensemble, group, severity)
        for group in GROUPS
        for severity in SEVERITIES
    }
    says = (
        "Reliability curves: observed share over predicted probability, a panel for each condition group and a curve "
        "for each severity; the counts of rows beneath."
    )
    caption = (
        "Rows count 1, 2, 4 by their severity, as in the metric, whose best answer is the share so weighted: on the "
        "dotted line probabilities are right. Hollow marks: fewer than 10 rows, so left out of the lines."
    )
    tables = joined(_confusion(group, confusion(own.labels, own.ensemble, group)) for group in GROUPS)
    content = [figure(reliability_figure(curves), says, caption), tag("h3", "Confusion")]
    content.append(tag("div", tables, class_="beside"))
    words = "The most probable severity is of the metric's weighted probabilities, which lean towards the severe."
    return Section("Reliability and confusion", joined([*content, paragraph(words)]))


def _confusion(group: str, counts: np.ndarray) -> Html:
    names = [severity_text(severity) for severity in SEVERITIES]
    rows = []
    for name, its in zip(names, counts, strict=True):
        total = int(its.sum())
        shares = its / max(total, 1)
        cells = [
            shaded(with_small(f"{share:.0%}" if total else NOT_TOLD, str(count)), float(share))
            for share, count in zip(shares, its.tolist(), strict=True)
        ]
        rows.append([name, *cells, str(total)])
    caption = f"{group.capitalize()}: share of each label's rows (%) by most probable severity; counts beneath."
    return table(caption, ["label", *names, "rows"], rows)


def gain(own: Predicted) -> Section:
    """The score over seconds, member by member."""
    sources, found, chosen = own.sources, own.sources.found, own.sources.ensemble
    steps = found.curve if found else run_order(sources.answers, sources.rule, chosen, sources.costs)
    start = pooled(own.labels, own.priors).final
    rows = []
    for place, step in enumerate(steps, 1):
        weights = chosen.weights[chosen.members.index(step.member)]
        weighed = [number(float(one), 3) for one in weights]
        rows.append([f"{place}. {member_text(step.member)}", *weighed, f"{step.seconds:.2f}", number(step.score)])
    says = "Score after each member over seconds a study; the table beneath has the numbers."
    caption = "Members in the order they run: weight by condition group, seconds a study, score so far on these rows."
    content = [figure(gain_figure(start, steps), says, "0 s: level priors. Numbers: members of the table.")]
    content.append(table(caption, ["member", *GROUPS, "seconds a study", "score so far"], rows))
    return Section("Gain by seconds", joined(content + (_search(found) if found else [])))


def _search(found: Found) -> list[Html]:
    scores = [
        [name.replace("_", " "), *(number(its[part].value) for part in FIGURES), span(its["final"])]
        for name, its in found.scores.items()
    ]
    caption = (
        "Out-of-fold log loss of the whole search (cross-fitted) beside simpler ways to mix; the best single member of "
        "each condition group is picked with hindsight."
    )
    factors = [
        [group, *(number(float(one), 3) for one in its)]
        for group, its in zip(GROUPS, found.ensemble.multipliers, strict=True)
    ]
    severities = [severity_text(severity) for severity in SEVERITIES]
    return [
        table(caption, ["ensemble", *PARTS, "mean", "95 %"], scores, [0]),
        table("Class multipliers of the mixed probabilities.", ["condition group", *severities], factors),
    ]


def localisation(sources: Sources) -> Section:
    """What localisers miss by on held-out studies."""
    rows = []
    for run in sources.runs:
        for view in VIEW_OF_GROUP.values():
            found = {fold: its[view] for fold, its in run.localisers.items() if view in its}
            if found:
                counts = str(sum(one.count for one in found.values()))
                errors = list(found.values())
                rows.append([run.name, KIND_TITLES[view], str(len(found)), counts, *_misses(errors)])
    without = [run.name for run in sources.runs if not run.localisers]
    caption = (
        "In-plane distance between located and annotated points of held-out studies: median and 95th percentile (mm); "
        "of several folds the mean, weighted by points, and beside it the range."
    )
    content = [table(caption, ["recipe", "view", "folds", "points", "median (mm)", "95 % (mm)"], rows)] if rows else []
    if without:
        content.append(paragraph(f"No localisation errors were kept by: {', '.join(without)}."))
    return Section("Localisation", joined(content))


def _misses(errors: Sequence[LandmarkError]) -> list[str]:
    cells = []
    for name in ("median_mm", "p95_mm"):
        values = [float(getattr(one, name)) for one in errors]
        mean = float(np.average(values, weights=[one.count for one in errors]))
        text = f"{mean:.1f}" if math.isfinite(mean) else "not located"
        cells.append(text if len(values) == 1 else f"{text} [{min(values):.1f}, {max(values):.1f}]")
    return cells


def cases(own: Predicted, count: int) -> Section:
    """The rows that cost most, with a picture of each where there is one."""
    found = worst(own.labels, own.ensemble, count)
    words = f"The rows with the largest weighted log loss under {own.mixture}; the label's column is shaded."
    return Section("Worst rows", joined([paragraph(words), *(_case(own, one, at) for at, one in enumerate(found, 1))]))


def _case(own: Predicted, case: Case, place: int) -> Html:
    study, row = own.sources.answers.studies[case.study], ROWS[case.row]
    label = int(own.labels[case.study, case.row])
    said = {own.mixture: own.ensemble} | own.systems | {"level priors": own.priors}
    rows = [
        [name, *(_chance(float(one), at == label) for at, one in enumerate(its[case.study, case.row]))]
        for name, its in said.items()
    ]
    picture, words = picture_of(own.data, study, row)
    says = f"{row_text(row)} of study {study}: whole slice, and crops of three neighbouring slices"
    content = [
        tag("h3", f"{place}. Study {study}, {row_text(row)}: {severity_text(SEVERITIES[label])}"),
        table(
            f"Weighted log loss {number(case.loss, 3)}. Probabilities (%) of:",
            ["by", *map(severity_text, SEVERITIES)],
            rows,
        ),
        figure(picture, says, words) if picture else paragraph(words),
    ]
    return tag("article", joined(content))


def _chance(share: float, is_label: bool) -> Html:
    return shaded(f"{100 * share:.1f}", 0.6 if is_label else 0.0)
