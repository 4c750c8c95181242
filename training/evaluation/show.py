"""Draws a study's landmarks: located by packaged or finished localisers, and the true ones if known; and its grades.

    python -m training.evaluation.show --data DIR --study ID [--weights DIR] [--runs DIR] [--out DIR]

The study may be one of train_images or of test_images.  Without --weights and --runs only the truth is drawn; grades
are those of --weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.commands import ends_with_a_sentence
from kernels.lumbar.answers.locate import Located
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.labels import ROWS, SEVERITIES
from kernels.lumbar.manifest import Manifest
from kernels.lumbar.networks.devices import default_device
from kernels.lumbar.networks.weights import WeightsError, find_manifest, read_manifest
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.competition import read_series_table
from kernels.profiles import PROFILES, Profile
from training.data.annotations import annotations_of, lift_all
from training.data.tables import MISSING, TablesError, read_tables
from training.evaluation.localiser_findings import Points, findings_of, shown, summary
from training.evaluation.overlays import Grades, draw_located
from training.evaluation.predictor import Prediction, Predictor
from training.evaluation.truth import TruthError, read_landmarks, read_solution
from training.evaluation.validate import fold_manifest
from training.recipe_schema.load import load_named, names_of
from training.recipe_schema.schema import RecipeError
from training.runs import RunFolder, UnusableRun

SPLITS = ("test", "train")
NAMED = 3


class ShowError(Exception):
    """A study that cannot be drawn, with the reason."""


def open_study(data: Path, study_id: str) -> tuple[str, Study]:
    """Split and decoded study.  Raises ShowError, which names some existing studies."""
    study_id = study_id.strip("/")
    for split in SPLITS:
        folder = data / f"{split}_images" / study_id
        if study_id and folder.is_dir():
            table = read_series_table(data / f"{split}_series_descriptions.csv")
            study = read_study(folder, study_id, table.series.get(study_id, []))
            if not study.stacks:
                raise ShowError(f"study {study_id} has no usable series: see {split}_series_descriptions.csv")
            return split, study
    folders = [data / f"{split}_images" for split in SPLITS]
    there = [sorted(one.name for one in folder.iterdir())[:NAMED] for folder in folders if folder.is_dir()]
    names = ", ".join(name for some in there for name in some) or "no studies at all"
    if not there:
        raise ShowError(
            f"{data} has no train_images and no test_images: name another folder with DATA=, or run make demo"
        )
    raise ShowError(f"{data} has no study '{study_id}'; it has {names} and others")


def known_landmarks(data: Path, split: str, study: Study) -> Points | None:
    """Row → patient mm: the phantom's truth, or a training study's annotations; None if unknown."""
    if (data / "truth" / "landmarks.csv").is_file():
        return read_landmarks(data, split).get(study.study_id)
    if split == "test":
        return None
    clicks = read_tables(data).coordinates
    return lift_all(study, annotations_of(clicks[clicks["study_id"] == study.study_id]))


def known_grades(data: Path, split: str, study_id: str) -> dict[str, int]:
    """Row → true severity: that of a phantom's solution, or of a training study's labels; empty if unknown."""
    if split == "train":
        labels = read_tables(data).labels
        own = labels[labels.index == study_id].to_dict("records")
        return {str(row): int(grade) for labelled in own for row, grade in labelled.items() if grade != MISSING}
    try:
        solution = read_solution(data).set_index("row_id")
    except TruthError:
        return {}
    own_rows = {row: f"{study_id}_{row}" for row in ROWS if f"{study_id}_{row}" in solution.index}
    columns = list(SEVERITIES)
    return {row: int(solution.loc[row_id, columns].to_numpy(float).argmax()) for row, row_id in own_rows.items()}


def answer_by_weights(weights: Path, study: Study) -> Prediction:
    """Landmarks by route and grades of a package.  Raises WeightsError, ShowError."""
    path = find_manifest([weights])
    return _predicted(read_manifest(path), path.parent, study)


def locate_by_recipe(runs: Path, profile: Profile, names: Sequence[str], study: Study) -> dict[str, Located]:
    """Landmarks of each recipe's finished localisers, in the first fold that has any.  Raises ShowError."""
    routes: dict[str, Located] = {}
    for recipe in (load_named(name, profile) for name in names):
        folder = RunFolder(runs, recipe)
        for fold in range(recipe.folds):
            if done := folder.finished(fold, "localiser")[0]:
                routes |= _predicted(fold_manifest(folder, done, fold), folder.root, study).located
                break
    if not routes:
        raise ShowError(f"{runs} holds no finished localiser of profile {profile}: train one with make train-all")
    return routes


def _predicted(manifest: Manifest, folder: Path, study: Study) -> Prediction:
    predictor = Predictor(manifest, folder, default_device())
    if not predictor.members:
        reasons = "; ".join(problem.detail for problem in predictor.problems) or "it names none"
        raise ShowError(f"{folder} has no usable localiser: {reasons}")
    return predictor.predict(study, Clock(float("inf")))


def describe(study: Study, routes: Mapping[str, Located], truth: Points | None) -> list[str]:
    """One line a route: number of landmarks, and their error if the truth is known."""
    lines = []
    for name, located in routes.items():
        found = len(located.points) - len(located.guessed)
        line = f"{name}: {found} landmarks located, {len(located.guessed)} guessed"
        if truth:
            slices = shown(study, truth)
            judged = findings_of(study.study_id, truth, slices, located.points, list(slices), located.guessed)
            one = summary(pd.DataFrame(judged)) if judged else None
            if one is not None:
                line += f", {one['median_mm']:.1f} mm (median) and {one['p95_mm']:.1f} mm (95 %) off"
                line += f", right level {one['right_level']:.0%}, right slice {one['right_slice']:.0%}"
        lines.append(line)
    return lines


@ends_with_a_sentence(
    "nothing to show", ShowError, RecipeError, TablesError, TruthError, UnusableRun, WeightsError, OSError
)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit code 1, with one sentence, if something is missing."""
    parser = argparse.ArgumentParser(prog="training.evaluation.show", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder in the competition's layout")
    parser.add_argument("--study", required=True, help="the number of a study")
    parser.add_argument("--weights", type=Path, help="a packaged dataset folder; default: only the truth is drawn")
    parser.add_argument("--runs", type=Path, help="finished runs, whose localisers need not be packaged")
    parser.add_argument("--recipes", nargs="*", default=[], help="of the runs; default: all")
    parser.add_argument("--profile", choices=PROFILES, default="full", help="of the runs")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of the picture")
    given = parser.parse_args(argv)
    split, study = open_study(given.data, given.study)
    truth = known_landmarks(given.data, split, study)
    routes: dict[str, Located] = {}
    answers: dict[str, np.ndarray] = {}
    if given.weights:
        predicted = answer_by_weights(given.weights, study)
        routes = dict(predicted.located)
        rows = zip(ROWS, predicted.rows, strict=True)
        answers = {row: answer for row, answer in rows if row not in predicted.fallbacks}
    if given.runs:
        names = names_of(given.recipes)
        routes |= locate_by_recipe(given.runs, given.profile, names, study)
    if not routes and not truth:
        raise ShowError(f"nothing is known of study {given.study}: give --weights to locate its landmarks")
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"overlay_{study.study_id}.png"
    grades = Grades(answers, known_grades(given.data, split, study.study_id))
    draw_located(study, routes, path, truth, f"({split})", grades)
    problems = [f"{one.kind} {one.where}: {one.detail}".replace(" :", ":") for one in study.problems]
    print("\n".join([str(path), *describe(study, routes, truth), *problems]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
