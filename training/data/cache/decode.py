"""Decodes one study at a time into its part of the cache, in one process or several."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from kernels.lumbar.answers.spine_shape import stack_centres
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.inputs.views import cut
from kernels.lumbar.labels import UNITS
from kernels.lumbar.problems import Problem
from kernels.lumbar.specs import ViewRequest


@dataclass(frozen=True)
class CacheRequest:
    """Content of one cache file: a view, with margin, of every unit of every study."""

    unit: str
    view: ViewRequest


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


@dataclass(frozen=True)
class Task:
    """Input of a worker for one study."""

    number: int
    """Index of the study in the cache."""
    study: str
    folder: Path
    series: list[tuple[str, str]]
    annotations: list[Annotation]
    files: dict[CacheRequest, Path]
    """Existing .npy files for the pixels (study × unit, slice, H, W); beside them those for the geometry
    (study × unit, slice, 3, 3)."""


@dataclass(frozen=True)
class Decoded:
    """Result of a worker for one study; pixels and geometry are in the files."""

    number: int
    landmarks: dict[str, np.ndarray]
    """Row → (3,) patient mm; also the centres of the stacks (kernels.lumbar.answers.spine_shape.STACK_CENTRES)."""
    present: dict[CacheRequest, np.ndarray]
    """(unit,) bool: whether the view exists."""
    problems: list[Problem]


def geometry_file(pixels: Path) -> Path:
    """The file of geometry beside a file of pixels."""
    return pixels.with_suffix(".geometry.npy")


def decode_all(tasks: Sequence[Task], jobs: int) -> Iterator[Decoded]:
    """All studies, in order.  Raises BrokenProcessPool if a worker dies."""
    if jobs <= 1:
        yield from map(decode, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker) as pool:
        yield from pool.map(decode, tasks, chunksize=4)


def _begin_worker() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def decode(task: Task) -> Decoded:
    """Read one study, convert its landmarks to mm, and write its part of every file.  Damaged data become Problems."""
    study = read_study(task.folder, task.study, task.series)
    landmarks = lift_all(study, task.annotations)
    found = {}
    for request, file in task.files.items():
        units = UNITS[request.unit]
        part = slice(task.number * len(units), (task.number + 1) * len(units))
        pixels = np.load(file, mmap_mode="r+")[part]  # (unit, slice, H, W)
        geometry = np.load(geometry_file(file), mmap_mode="r+")[part]  # (unit, slice, 3, 3)
        present = np.zeros(len(units), bool)
        for place, unit in enumerate(units):
            view = cut(study, request.view, unit, landmarks)
            if view is not None:
                present[place] = True
                pixels[place] = view.pixels
                planes = [(plane.origin_mm, plane.column_mm, plane.row_mm) for plane in view.planes]
                geometry[place] = np.nan  # stays for blank slices
                geometry[place, : len(planes)] = planes
        found[request] = present
    return Decoded(task.number, landmarks | stack_centres(study), found, study.problems)


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
