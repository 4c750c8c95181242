"""The report's sections on what lies behind the scores: calibration, seconds, landmarks and the worst rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from kernels.lumbar.labels import GROUPS, ROWS, SEVERITIES
from training.ensemble.result import SINGLE
from training.ensemble.strategies import TITLES
from training.evaluation.intervals import FIGURES
from training.evaluation.landmark_errors import VIEW_OF_GROUP, LandmarkError
from training.evaluation.metric import pooled
from training.evaluation.overlays import KIND_TITLES
from training.report.cases import picture_of, row_text
from training.report.ensemble_file import Found
from training.report.figures import gain_figure, reliability_figure, severity_text
from training.report.finished_runs import ReportSources
from training.report.localisation import Looking
from training.report.numbers import Case, confusion, reliability, worst
from training.report.page import Html, Section, figure, joined, paragraph, shaded, table, tag, with_small
from training.report.predictions import Predicted
from training.report.sections import NOT_TOLD, PARTS, member_text, number, span

# Scores that look different with four digits.
TOLD_APART = 5e-5


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
    found, chosen = own.sources.found, own.sources.ensemble
    known = pooled(own.labels, own.priors).final
    rows = []
    for place, step in enumerate(own.steps, 1):
        weights = chosen.weights[chosen.members.index(step.member)]
        weighed = [number(float(one), 3) for one in weights]
        rows.append([f"{place}. {member_text(step.member)}", *weighed, f"{step.seconds:.2f}", number(step.score)])
    says = "Score after each member over seconds a study; the table beneath has the numbers."
    beneath = (
        f"Before the first member there are the level priors, whose {number(known)} lies outside of the picture. "
        "Numbers: members of the table, where there is room for them."
    )
    fitted = ", with weights fitted on other studies" if found else ""
    caption = (
        f"Members in the order they run: weight by condition group as it ships, seconds a study, score so far{fitted}."
    )
    content = [figure(gain_figure(own.steps), says, beneath)]
    content.append(table(caption, ["member", *GROUPS, "seconds a study", "score so far"], rows))
    last = pooled(own.labels, own.ensemble).final
    if own.steps and abs(own.steps[-1].score - last) > TOLD_APART:
        content.append(
            paragraph(
                f"The last step is not the cross-fitted {number(last)}: fits without some studies also weigh members "
                "that the ensemble on all studies leaves out."
            )
        )
    return Section("Gain by seconds", joined(content + (_search(found) if found else [])))


def _search(found: Found) -> list[Html]:
    titles = TITLES | {"cross_fitted": "the ensemble", "best_single": SINGLE}
    scores = [
        [titles.get(name, name), *(number(its[part].value) for part in FIGURES), span(its["final"])]
        for name, its in found.scores.items()
    ]
    caption = (
        "Out-of-fold log loss of the ensemble beside other ways to mix, each cross-fitted, and recipes as they stand; "
        "what is picked by hindsight is flattered."
    )
    factors = [
        [group, *(number(float(one), 3) for one in its)]
        for group, its in zip(GROUPS, found.ensemble.multipliers, strict=True)
    ]
    severities = [severity_text(severity) for severity in SEVERITIES]
    words = [paragraph(f"Taken: {found.reason}.")] if found.reason else []
    return [
        *words,
        table(caption, ["ensemble", *PARTS, "mean", "95 %"], scores, [0]),
        table("Class multipliers of the mixed probabilities.", ["condition group", *severities], factors),
    ]


def localisation(sources: ReportSources) -> Section:
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
    sources = own.sources
    looking = Looking(sources.folder, sources.profile, [run.name for run in sources.runs])
    words = (
        f"The rows with the largest weighted log loss under {own.mixture}; the label's column is shaded. Beside each "
        "recipe stands how far from the point it looked: in the plane of the slices, and across them."
    )
    shown = tqdm(found, desc="worst rows", unit="row", disable=own.data is None)
    content = [paragraph(words), *(_case(own, one, at, looking) for at, one in enumerate(shown, 1))]
    return Section("Worst rows", joined(content))


def _case(own: Predicted, case: Case, place: int, looking: Looking) -> Html:
    study, row = own.sources.answers.studies[case.study], ROWS[case.row]
    label, fold = int(own.labels[case.study, case.row]), int(own.sources.answers.folds[case.study])
    picture = picture_of(own.data, study, row, fold, looking)
    said = {own.mixture: own.ensemble} | own.systems | {"level priors": own.priors}
    rows = []
    for name, its in said.items():
        chances = [_chance(float(one), at == label) for at, one in enumerate(its[case.study, case.row])]
        rows.append([name, *chances, picture.misses.get(name, NOT_TOLD)])
    says = f"{row_text(row)} of study {study}: whole slice, and crops of three neighbouring slices"
    content = [
        tag("h3", f"{place}. Study {study}, {row_text(row)}: {severity_text(SEVERITIES[label])}"),
        table(
            f"Weighted log loss {number(case.loss, 3)}. Probabilities (%) of:",
            ["by", *map(severity_text, SEVERITIES), "looked beside (mm)"],
            rows,
        ),
        figure(picture.image, says, picture.words) if picture.image else paragraph(picture.words),
    ]
    return tag("article", joined(content))


def _chance(share: float, is_label: bool) -> Html:
    return shaded(f"{100 * share:.1f}", 0.6 if is_label else 0.0)
