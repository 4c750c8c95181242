"""Annotated points in pixels of files → landmarks in patient mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kernels.lumbar.dicom.study import Study
from kernels.lumbar.problems import Problem


@dataclass(frozen=True)
class Annotation:
    """A line of train_label_coordinates.csv: a landmark in pixels of its file."""

    series_id: str
    instance: int
    row: str
    x: float
    y: float


def annotations_of(coordinates: pd.DataFrame) -> list[Annotation]:
    """One study's lines of training.data.tables.Tables.coordinates."""
    columns = ["series_id", "instance", "row", "x", "y"]
    return [Annotation(*line) for line in coordinates[columns].itertuples(index=False, name=None)]


def lift_all(study: Study, annotations: Sequence[Annotation]) -> dict[str, np.ndarray]:
    """Row → (3,) patient mm.  An annotation of a missing file, or a second one of a row, becomes a Problem."""
    landmarks: dict[str, np.ndarray] = {}
    for one in annotations:
        where = f"{one.series_id}/{one.instance}"
        point = study.lift(one.series_id, one.instance, one.y, one.x)
        if point is None:
            study.problems.append(Problem(study.study_id, where, "annotation-without-image", f"{one.row} is left out"))
            continue
        if one.row in landmarks:
            study.problems.append(Problem(study.study_id, where, "annotated-twice", f"{one.row}: the last one counts"))
        landmarks[one.row] = point
    return landmarks
