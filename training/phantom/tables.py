"""The competition's CSV files of a set of studies, and the ground truth that the competition does not publish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.lumbar.labels import CONDITIONS, LEVELS, ROWS, SEVERITIES, SEVERITY_WEIGHTS
from kernels.lumbar.run.submission import whole_file

from .study import PhantomStudy, StudyOrder

Made = list[tuple[StudyOrder, PhantomStudy]]

LAST_TABLE = "sample_submission.csv"
"""The table that is written last: where it is, the data set is complete."""

_GRADE_NAMES = ("Normal/Mild", "Moderate", "Severe")
# train.csv has its columns in another order than the submission its rows.
_TRAIN_CONDITIONS = (
    "spinal_canal_stenosis",
    "left_neural_foraminal_narrowing",
    "right_neural_foraminal_narrowing",
    "left_subarticular_stenosis",
    "right_subarticular_stenosis",
)
TRAIN_COLUMNS = tuple(f"{condition}_{level}" for condition in _TRAIN_CONDITIONS for level in LEVELS)


def write_competition_tables(folder: Path, train: Made, test: Made) -> None:
    """train.csv, the series and coordinate tables and sample_submission.csv, named as in the competition."""
    _write(_labels(train, hide_ungraded=True), folder / "train.csv")
    _write(_series(train), folder / "train_series_descriptions.csv")
    _write(_coordinates(train), folder / "train_label_coordinates.csv")
    _write(_series(test), folder / "test_series_descriptions.csv")
    ids = [f"{order.study_id}_{row}" for order, _ in test for row in ROWS]
    third = dict.fromkeys(SEVERITIES, 1 / 3)
    _write(pd.DataFrame({"row_id": ids, **third}), folder / LAST_TABLE)


def write_truth(folder: Path, train: Made, test: Made) -> None:
    """solution.csv of the test studies; labels, narrowing measures and landmarks of all."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(_solution(test), folder / "solution.csv")
    _write(_labels([*train, *test], hide_ungraded=False), folder / "labels.csv")
    _write(_measures([*train, *test]), folder / "measures.csv")
    landmarks = [*_landmark_rows("train", train), *_landmark_rows("test", test)]
    columns = ["study_id", "split", "condition", "level", "x_mm", "y_mm", "z_mm"]
    _write(pd.DataFrame(landmarks, columns=columns), folder / "landmarks.csv")


def _write(table: pd.DataFrame, path: Path) -> None:
    """Whole or not at all: a table that was cut short must not look complete."""
    with whole_file(path) as temporary:
        table.to_csv(temporary, index=False)


def _labels(made: Made, hide_ungraded: bool) -> pd.DataFrame:
    shown = [study.graded if hide_ungraded else [True] * len(ROWS) for _, study in made]
    grades = [study.severity.grades for _, study in made]
    names = [
        [_GRADE_NAMES[grade] if graded else None for grade, graded in zip(*pair, strict=True)]
        for pair in zip(grades, shown, strict=True)
    ]
    return _by_study(made, names)


def _measures(made: Made) -> pd.DataFrame:
    return _by_study(made, [np.round(study.severity.narrowing, 4) for _, study in made])


def _by_study(made: Made, values: Sequence[Sequence[object] | np.ndarray]) -> pd.DataFrame:
    """A line a study of values in the order of ROWS, columns in the order of train.csv."""
    ids = pd.Index([order.study_id for order, _ in made], name="study_id")
    return pd.DataFrame(values, ids, list(ROWS))[list(TRAIN_COLUMNS)].reset_index()


def _series(made: Made) -> pd.DataFrame:
    records = [
        (order.study_id, series_id, plan.description)
        for order, study in made
        for series_id, plan in zip(order.series_ids, study.plans, strict=False)
    ]
    return pd.DataFrame(records, columns=["study_id", "series_id", "series_description"])


def _coordinates(made: Made) -> pd.DataFrame:
    records = []
    for order, study in made:
        for click in study.clicks:
            condition, level = CONDITIONS[click.row // len(LEVELS)], LEVELS[click.row % len(LEVELS)]
            title, interval = condition.replace("_", " ").title(), level.upper().replace("_", "/")
            series_id = order.series_ids[click.series]
            records.append((order.study_id, series_id, click.instance, title, interval, click.x, click.y))
    columns = ["study_id", "series_id", "instance_number", "condition", "level", "x", "y"]
    return pd.DataFrame(records, columns=columns)


def _solution(made: Made) -> pd.DataFrame:
    records = []
    for order, study in made:
        for row, grade in zip(ROWS, study.severity.grades, strict=True):
            one_hot = [int(grade == number) for number in range(len(SEVERITIES))]
            records.append((f"{order.study_id}_{row}", *one_hot, int(SEVERITY_WEIGHTS[grade])))
    return pd.DataFrame(records, columns=["row_id", *SEVERITIES, "sample_weight"])


def _landmark_rows(split: str, made: Made) -> Iterator[tuple[object, ...]]:
    for order, study in made:
        for index, point in enumerate(np.round(study.landmarks, 3)):
            condition, level = CONDITIONS[index // len(LEVELS)], LEVELS[index % len(LEVELS)]
            yield (order.study_id, split, condition, level, *point)
