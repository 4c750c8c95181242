"""A student of an ensemble: the soft labels that it learns from, and what it is worth beside its teacher.

    python -m training.ensemble.distil labels --runs RUNS --out FILE.csv [--ensemble FILE] [--profile full]
    python -m training.ensemble.distil compare --runs RUNS --out DIR [--student NAME] [--ensemble FILE] [--profile full]
                                               [--recipes my/own.yaml] [--oof DIR --data DIR]   as for labels

`labels` writes the ensemble's out-of-fold answers, cross-fitted, as training/data/soft_labels.py reads them; `compare`
a table of score against seconds a study, from the student to the full ensemble, distil.json and distil.png.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from kernels.commands import ends_with_a_sentence
from kernels.lumbar.run.submission import replace_json, whole_file
from kernels.text import aligned
from training.data.folds import FoldsError
from training.data.foreign_answers import ELSEWHERE
from training.data.out_of_fold import Answers, OutOfFoldError, Rule
from training.data.soft_labels import write_soft_labels
from training.data.tables import TablesError
from training.ensemble.search import CurvePoint, Ensemble, SearchError, cross_calibrated, run_order
from training.ensemble.sources import add_foreign, read_sources
from training.ensemble.strategies import CrossFit, cross_fit
from training.evaluation.intervals import FIGURES, Difference, Interval, difference, intervals
from training.evaluation.json_safe import finite
from training.evaluation.metric import pooled
from training.packaging.ensemble_weights import ALL_GROUPS, FoundEnsemble, foreign_names, read_ensemble
from training.recipe_schema.load import names_of, path_of
from training.recipe_schema.schema import RecipeError
from training.runs import ENSEMBLE, UnusableRun

STUDENT_GOAL = "the goal is a score within 0.01 of the ensemble's at an eighth of its seconds"


class TeacherFile(FoundEnsemble):
    """The part of ensemble.json by which its answers are made again, cross-fitted."""

    strategy: str
    budget: float | None = None


@dataclass(frozen=True)
class Teacher:
    """An ensemble with its answers for studies that neither its networks nor its weights were fitted on."""

    answers: Answers
    fit: CrossFit
    curve: list[CurvePoint]
    """Its members in run order, with the seconds reached; NaN where those of a member are not known."""

    @property
    def answered(self) -> np.ndarray:
        """(N, 25) whether any of its members answers a row."""
        names = [point.member for point in self.curve]
        found: np.ndarray = np.isfinite(self.answers.only(members=names).logits[..., 0]).any(0)
        return found


@dataclass(frozen=True)
class Standing:
    """A student or a part of the ensemble."""

    name: str
    members: int
    seconds: float
    """A study, with its localisers; NaN = not known."""
    scores: dict[str, Interval]
    against: Difference
    """Less the whole ensemble on the same studies: above 0 is a loss."""


def read_teacher(
    runs: Path,
    profile: str,
    path: Path,
    named: Sequence[str] = (),
    foreign: Path | None = None,
    data: Path | None = None,
) -> Teacher:
    """The ensemble of a file, fitted again on the other folds for each fold of the recipes that it uses.

    `named`: recipes by name or path, where they are not this project's.  `foreign`: folder of the predictions of its
    members from elsewhere; `data`: whose train.csv has the labels, where it has no others.  Raises UnusableRun,
    SearchError, OutOfFoldError, FoldsError, TablesError.
    """
    found = read_ensemble(path, TeacherFile)
    given = {Path(name).stem: name for name in (names_of(named) if named else ())}
    used = sorted({member.partition("/")[0] for member in found.order} - {ELSEWHERE})
    if lost := [name for name in used if name not in given and not path_of(name).is_file()]:
        raise SearchError(f"{path} uses {lost[0]}, which is no recipe of this project: name its file with TEACHERS=")
    theirs = foreign if foreign_names(found, foreign) else None
    sources = read_sources(runs, profile, [given.get(name, name) for name in used], theirs, data)
    if absent := [name for name in found.order if name not in sources.answers.members]:
        raise SearchError(f"{path} was made from other answers: these have no {absent[0]}; make ensemble again")
    rule, (costs, uncosted) = Rule(found.average, sources.priors()), sources.costs()
    fit = cross_fit(sources.answers, rule, costs, found.budget, sources.recipe_weights(), found.strategy)
    weights = np.array([[found.weights[name][group] for group in ALL_GROUPS] for name in found.order])
    plain = Ensemble(found.order, weights, np.ones((3, 3)))
    curve = run_order(sources.answers, rule, plain, costs)
    curve = [replace(point, seconds=math.nan) for point in curve] if uncosted else curve
    return Teacher(sources.answers, fit, curve)


def write_labels(teacher: Teacher, out: Path) -> str:
    """Write the soft labels, without rows that no network answers; returns what was written, as a sentence.

    Raises SearchError where all answers are of one fold.
    """
    answers, rows = teacher.answers, teacher.fit.predicted
    if len(folds := sorted(set(answers.folds.tolist()))) < 2:
        raise SearchError(
            f"the ensemble answers the studies of fold {folds[0]} alone, which a student of it must not learn from: "
            "make train-all with more FOLDS= and make ensemble first"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_soft_labels(out, answers.studies, np.where(teacher.answered[..., None], rows, np.nan))
    score = pooled(answers.labels, rows).final
    rows_and_studies = f"{int(teacher.answered.sum())} rows of {len(answers.studies)} studies"
    return f"{out}: {rows_and_studies}, by {len(teacher.curve)} networks; cross-fitted score {score:.4f}"


def compare(teacher: Teacher, runs: Path, profile: str, student: str) -> list[Standing]:
    """The student, then the ensemble's first networks up to all, on the studies that both answered out of fold."""
    sources = read_sources(runs, profile, [student])
    rule, (costs, uncosted) = Rule("logits", sources.priors()), sources.costs()
    if not sources.recipes:
        raise SearchError(f"{student} is no recipe of this project: name its file")
    own = sources.recipe_weights()[0].ensemble(sources.answers)
    rows = cross_calibrated(own, sources.answers, rule)
    place = {study: number for number, study in enumerate(sources.answers.studies)}
    shared = [study for study in teacher.answers.studies if study in place]
    if not shared:
        raise SearchError(f"{student} and the ensemble answer no study in common: train the same folds")
    here, there = [place[study] for study in shared], [teacher.answers.studies.index(study) for study in shared]
    labels, whole = teacher.answers.labels[there], teacher.fit.predicted[there]
    seconds = math.nan if uncosted else costs.of(own.members)
    found = [_standing(Path(student).stem, len(own.members), seconds, labels, rows[here], whole)]
    names = [point.member for point in teacher.curve]
    for count, point in enumerate(teacher.curve, 1):
        part = whole if count == len(names) else teacher.fit.of(names[:count])[there]
        name = "the whole ensemble" if count == len(names) else f"its first {count}: … {point.member}"
        found.append(_standing(name, count, point.seconds, labels, part, whole))
    return found


def _standing(
    name: str, members: int, seconds: float, labels: np.ndarray, rows: np.ndarray, whole: np.ndarray
) -> Standing:
    return Standing(name, members, seconds, intervals(labels, rows), difference(labels, rows, whole))


def table_of(standings: Sequence[Standing]) -> str:
    """Scores beside seconds, and whether the student reaches its goal."""
    student, *_, whole = standings
    rows = [["out of fold", "networks", "s a study", *FIGURES, "[95 %]", "less the ensemble [95 %]"]]
    for one in standings:
        values = [f"{one.scores[part].value:.4f}" for part in FIGURES]
        final, gain = one.scores["final"], one.against
        less = gain.text if one is not whole else ""
        bounds = f"[{final.low:.4f}, {final.high:.4f}]"
        seconds = "-" if math.isnan(one.seconds) else f"{one.seconds:.3f}"
        rows.append([one.name, str(one.members), seconds, *values, bounds, less])
    share = whole.seconds / student.seconds if student.seconds else math.nan
    at = "; their seconds are not all known" if math.isnan(share) else f" at 1/{share:.1f} of its seconds"
    reached = f"{student.name}: {student.against.value:+.4f} to the ensemble{at}"
    return "\n".join([*aligned(rows), f"{reached}; {STUDENT_GOAL}"])


def picture_of(standings: Sequence[Standing]) -> Figure:
    """Score over seconds a study: the ensemble as it grows, and the student."""
    student, *parts = standings
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for its, style, label in ((parts, "o-", "ensemble, network by network"), ([student], "s", student.name)):
        final = [one.scores["final"] for one in its]
        spread = [[one.value - one.low for one in final], [one.high - one.value for one in final]]
        seconds, values = [one.seconds for one in its], [one.value for one in final]
        axes.errorbar(seconds, values, yerr=spread, fmt=style, capsize=2, elinewidth=0.6, label=label)
    axes.set_xlabel("seconds a study, with localisers")
    axes.set_ylabel("out-of-fold score, 95 % interval")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


@ends_with_a_sentence(
    "distil stopped", SearchError, OutOfFoldError, FoldsError, TablesError, RecipeError, UnusableRun, OSError
)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="training.ensemble.distil", description=__doc__)
    parser.add_argument("command", choices=("labels", "compare"))
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="file of soft labels, or folder of table and picture")
    parser.add_argument("--ensemble", type=Path, help="result of make ensemble; default: RUNS/ensemble.json")
    parser.add_argument("--student", default="student", help="recipe of the student, by name or path")
    parser.add_argument("--recipes", nargs="+", default=[], help="recipes of the ensemble that are named by a path")
    parser.add_argument("--profile", default="full")
    add_foreign(parser)
    options = parser.parse_args(argv)
    given = options.ensemble or options.runs / ENSEMBLE
    teacher = read_teacher(options.runs, options.profile, given, options.recipes, options.oof, options.data)
    if options.command == "labels":
        sys.stdout.write(write_labels(teacher, options.out) + "\n")
        return 0
    standings = compare(teacher, options.runs, options.profile, options.student)
    options.out.mkdir(parents=True, exist_ok=True)
    replace_json(options.out / "distil.json", finite([asdict(one) for one in standings]))
    with whole_file(options.out / "distil.png") as temporary:
        picture_of(standings).savefig(temporary, dpi=120, format="png")
    sys.stdout.write(f"{table_of(standings)}\n{options.out / 'distil.png'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
