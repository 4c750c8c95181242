"""Crop caches: each study is decoded once, and what all networks need of it is kept as flat memory-mapped arrays.

One file a view request, (study × unit, slice, H, W) uint8, cut by kernels.lumbar.views at the annotated landmarks.
Crops around landmarks are kept with a margin, at the same millimetres a pixel, so that rotation and jitter never meet
a border; the middle of a kept crop is, byte for byte, what the kernel cuts at the same landmark.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from kernels.lumbar.dicom import read_study
from kernels.lumbar.geometry import Plane
from kernels.lumbar.labels import UNITS
from kernels.lumbar.problems import Problem
from kernels.lumbar.specs import ViewRequest
from kernels.lumbar.study import Study
from kernels.lumbar.submission import replace_json, replace_text
from kernels.lumbar.views import cut
from training.data.tables import Tables
from training.recipe import MemberRecipe
from training.runs import digest

# Share of a crop's side that is kept beyond each border: a crop turned and sheared by 15 degrees stays inside.
MARGIN = 0.25
MARGIN_SLICES = 1
# Changes whenever the same request gives other bytes, so that older caches are made again.
CUTTING = "percentile window, area shrinking, warpAffine"
log = logging.getLogger("cache")


class CacheError(Exception):
    """A cache that cannot be made, and why."""


@dataclass(frozen=True)
class CacheRequest:
    """What one file of the cache holds: a view of every unit of every study, with its margin."""

    unit: str
    view: ViewRequest


def widened(request: ViewRequest) -> ViewRequest:
    """The request with margin as it is cached; whole images have none."""
    update: dict[str, object] = {"normalisation": "unit"}
    if request.centre and request.size_mm is not None:
        size_px = request.size_px + 2 * round(request.size_px * MARGIN)
        update["size_px"], update["size_mm"] = size_px, request.size_mm * size_px / request.size_px
        count = request.slices.count + 2 * MARGIN_SLICES
        update["slices"] = request.slices.model_copy(update={"count": count})
    return request.model_copy(update=update)


def requests_of(members: Iterable[MemberRecipe]) -> list[CacheRequest]:
    """All different cached views that these networks need."""
    needed = (CacheRequest(m.member.unit, widened(view)) for m in members for view in m.member.inputs)
    return list(dict.fromkeys(needed))


@dataclass(frozen=True)
class CachedView:
    """One file of the cache, mapped; N = studies × units, studies first."""

    pixels: np.ndarray
    """(N, slice, H, W) uint8"""
    present: np.ndarray
    """(N,) bool: whether the view exists."""
    geometry: np.ndarray
    """(N, slice, 3, 3) origin, column step and row step of each slice in mm."""

    def planes(self, index: int) -> tuple[Plane, ...]:
        """The planes of one view, slice by slice."""
        return tuple(Plane(*vectors) for vectors in self.geometry[index])


@dataclass(frozen=True)
class Cache:
    """All views of a data set that a recipe needs, and its landmarks."""

    studies: tuple[str, ...]
    landmarks: dict[str, dict[str, np.ndarray]]
    """Study → row → (3,) patient mm, as annotated."""
    views: dict[CacheRequest, CachedView]

    def of(self, unit: str, request: ViewRequest) -> CachedView:
        """The cached view, with margin, of a request without."""
        return self.views[CacheRequest(unit, widened(request))]


def build_cache(root: Path, tables: Tables, requests: Sequence[CacheRequest], out: Path, jobs: int) -> Cache:
    """Open the cache in `out`, after making what is not there yet.  Raises CacheError."""
    studies = tuple(str(study) for study in tables.labels.index)
    names = {request: _name(tables, request) for request in requests}
    landmark_file = out / f"landmarks-{digest(tables.fingerprint, CUTTING)[:16]}.json"
    missing = [request for request, name in names.items() if not (out / f"{name}.npz").is_file()]
    if missing or not landmark_file.is_file():
        _make(root, tables, studies, {request: names[request] for request in missing}, out, jobs, landmark_file)
    lifted = json.loads(landmark_file.read_text())
    landmarks = {study: {row: np.array(point) for row, point in points.items()} for study, points in lifted.items()}
    views = {}
    for request, name in names.items():
        with np.load(out / f"{name}.npz") as index:
            pixels = np.load(out / f"{name}.npy", mmap_mode="r")
            views[request] = CachedView(pixels, index["present"], index["geometry"])
    return Cache(studies, landmarks, views)


def _name(tables: Tables, request: CacheRequest) -> str:
    made_of = digest(tables.fingerprint, request.unit, request.view.model_dump(mode="json"), CUTTING)
    return f"{request.view.series}-{request.unit}-{request.view.size_px}px-{made_of[:16]}"


@dataclass(frozen=True)
class _Task:
    """What a worker needs for one study."""

    number: int
    study: str
    root: Path
    series: list[tuple[str, str]]
    points: list[tuple[str, int, str, float, float]]
    """(series id, instance, row, x, y)"""
    files: dict[CacheRequest, Path]


def _make(
    root: Path,
    tables: Tables,
    studies: Sequence[str],
    names: dict[CacheRequest, str],
    out: Path,
    jobs: int,
    landmark_file: Path,
) -> None:
    """Decode every study once and fill all missing files; they get their names when all of them are complete."""
    out.mkdir(parents=True, exist_ok=True)
    files = {request: out / f"{name}.part.npy" for request, name in names.items()}
    shapes = {request: _shape(request, len(studies)) for request in files}
    for request, file in files.items():
        np.lib.format.open_memmap(file, "w+", np.uint8, shapes[request]).flush()
    present = {request: np.zeros(shapes[request][0], bool) for request in files}
    geometry = {request: np.zeros((*shapes[request][:2], 3, 3)) for request in files}
    columns = ["series_id", "instance", "row", "x", "y"]
    points = {
        study: list(one[columns].itertuples(index=False, name=None))
        for study, one in tables.coordinates.groupby("study_id")
    }
    tasks = [
        _Task(number, study, root, tables.series.get(study, []), points.get(study, []), files)
        for number, study in enumerate(studies)
    ]
    landmarks, problems = {}, []
    for number, lifted, views, found in tqdm(_map(tasks, jobs), total=len(tasks), unit="study", desc="decoding"):
        landmarks[studies[number]] = {row: point.tolist() for row, point in lifted.items()}
        problems += found
        for request, (here, planes) in views.items():
            units = len(here)
            present[request][number * units : (number + 1) * units] = here
            geometry[request][number * units : (number + 1) * units] = planes
    for request, name in names.items():
        files[request].replace(out / f"{name}.npy")
        with open(out / f".{name}.part", "wb") as stream:
            np.savez(stream, present=present[request], geometry=geometry[request])
        (out / f".{name}.part").replace(out / f"{name}.npz")
    table = pd.DataFrame([vars(problem) for problem in problems], columns=["study", "where", "kind", "detail"])
    replace_text(out / "problems.csv", table.to_csv(index=False))
    replace_json(landmark_file, landmarks)
    if problems:
        log.warning(
            "%d problems while decoding, by kind: %s (all of them: %s)",
            len(table),
            table["kind"].value_counts().to_dict(),
            out / "problems.csv",
        )


def _shape(request: CacheRequest, studies: int) -> tuple[int, int, int, int]:
    size = request.view.size_px
    return studies * len(UNITS[request.unit]), request.view.slices.count, size, size


_Result = tuple[int, dict[str, np.ndarray], dict[CacheRequest, tuple[np.ndarray, np.ndarray]], list[Problem]]


def _map(tasks: Sequence[_Task], jobs: int) -> Iterable[_Result]:
    """Cut all studies, in this process or several, with results as they come."""
    if jobs <= 1:
        yield from map(_cut_study, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        yield from pool.map(_cut_study, tasks, chunksize=4)


def _one_thread() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _cut_study(task: _Task) -> _Result:
    """Read one study, lift its landmarks, and write its part of every file."""
    study = read_study(task.root / "train_images" / task.study, task.study, task.series)
    landmarks = _lift(study, task.points)
    views = {}
    for request, file in task.files.items():
        units = UNITS[request.unit]
        target = np.load(file, mmap_mode="r+")
        here = np.zeros(len(units), bool)
        planes = np.zeros((len(units), request.view.slices.count, 3, 3))
        for place, unit in enumerate(units):
            view = cut(study, request.view, unit, landmarks)
            if view is not None:
                here[place] = True
                target[task.number * len(units) + place] = view.pixels
                planes[place] = [(plane.origin_mm, plane.column_mm, plane.row_mm) for plane in view.planes]
        views[request] = (here, planes)
    return task.number, landmarks, views, study.problems


def _lift(study: Study, points: Sequence[tuple[str, int, str, float, float]]) -> dict[str, np.ndarray]:
    """Row → patient mm.  An annotation on a file that is not there is a Problem; of two for one row the last counts."""
    landmarks = {}
    for series_id, instance, row, x, y in points:
        point = study.lift(series_id, instance, y, x)
        if point is None:
            where = f"{series_id}/{instance}"
            study.problems.append(Problem(study.study_id, where, "annotation-without-image", f"{row} is left out"))
        else:
            landmarks[row] = point
    return landmarks
