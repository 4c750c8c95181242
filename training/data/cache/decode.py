"""One study at a time, from DICOM files to its part of the cache; runs in one process or in several."""

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
    """What one file of the cache holds: a view of every unit of every study, with its margin."""

    unit: str
    view: ViewRequest


@dataclass(frozen=True)
class Annotation:
    """A line of train_label_coordinates.csv: the place of a row in a file's own pixels."""

    series_id: str
    instance: int
    row: str
    x: float
    y: float


@dataclass(frozen=True)
class Task:
    """What a worker needs for one study."""

    number: int
    """The study's place in the cache."""
    study: str
    folder: Path
    series: list[tuple[str, str]]
    annotations: list[Annotation]
    files: dict[CacheRequest, Path]
    """Where the cut pixels go: .npy files (study × unit, slice, H, W), which exist already, as do those beside them
    for the geometry (study × unit, slice, 3, 3)."""


@dataclass(frozen=True)
class Decoded:
    """What a worker found in one study; pixels and geometry are in the files."""

    number: int
    landmarks: dict[str, np.ndarray]
    """Row → (3,) patient mm; and the middles of the stacks (kernels.lumbar.answers.spine_shape.STACK_CENTRES)."""
    present: dict[CacheRequest, np.ndarray]
    """(unit,) bool: whether the view exists."""
    problems: list[Problem]


def geometry_file(pixels: Path) -> Path:
    """Where the geometry of a file of pixels lies."""
    return pixels.with_suffix(".geometry.npy")


def decode_all(tasks: Sequence[Task], jobs: int) -> Iterator[Decoded]:
    """All studies in order, as they come.  Raises BrokenProcessPool where a worker dies."""
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
    """A worker whose parent was killed would else wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def decode(task: Task) -> Decoded:
    """Read one study, lift its landmarks, and write its part of every file.  Damaged data are Problems."""
    study = read_study(task.folder, task.study, task.series)
    landmarks = lift_all(study, task.annotations)
    found = {}
    for request, file in task.files.items():
        units = UNITS[request.unit]
        its_own = slice(task.number * len(units), (task.number + 1) * len(units))
        pixels = np.load(file, mmap_mode="r+")[its_own]
        geometry = np.load(geometry_file(file), mmap_mode="r+")[its_own]
        present = np.zeros(len(units), bool)
        for place, unit in enumerate(units):
            view = cut(study, request.view, unit, landmarks)
            if view is not None:
                present[place] = True
                pixels[place] = view.pixels
                planes = [(plane.origin_mm, plane.column_mm, plane.row_mm) for plane in view.planes]
                geometry[place] = np.nan  # what blank slices keep
                geometry[place, : len(planes)] = planes
        found[request] = present
    return Decoded(task.number, landmarks | stack_centres(study), found, study.problems)


def lift_all(study: Study, annotations: Sequence[Annotation]) -> dict[str, np.ndarray]:
    """Row → (3,) patient mm.  An annotation of a file that is not there, or a second one of a row, is a Problem."""
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
