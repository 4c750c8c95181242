"""Crop caches: each study is decoded once, and what all networks need of it is kept as flat memory-mapped arrays.

One file a view request, (study × unit, slice, H, W) uint8, cut by kernels.lumbar.views at the annotated landmarks.
Crops around landmarks are kept with a margin, at the same millimetres a pixel, so that rotation and jitter never meet
a border; the middle of a kept crop is, byte for byte, what the kernel cuts at the same landmark.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from kernels.lumbar.geometry import Plane
from kernels.lumbar.labels import ROW_INDEX, UNITS
from kernels.lumbar.problems import Problem
from kernels.lumbar.specs import ViewRequest
from kernels.lumbar.submission import replace_json, replace_text
from training.data.decode import Annotation, CacheRequest, Task, decode_all
from training.data.tables import Tables
from training.recipe import MemberRecipe
from training.runs import digest

# Share of a crop's side that is kept beyond each border: a crop turned and sheared by 15 degrees stays inside.
MARGIN = 0.25
MARGIN_SLICES = 1
# The kind of unit that is of a level or not, and of a side or not.
KIND_OF = {(one.level is not None, one.side is not None): kind for kind, (one, *_) in UNITS.items()}
# Changes whenever the same request gives other bytes, so that older caches are made again.
CUTTING = "percentile window, area shrinking, remap; stack centres; resampled or padded whole stacks"
log = logging.getLogger("cache")


class CacheError(Exception):
    """A cache that cannot be made, and why."""


def widened(request: ViewRequest) -> ViewRequest:
    """The request with margin as it is cached; whole images have none, and marks are drawn when they are needed."""
    update: dict[str, object] = {"normalisation": "unit", "marks": ()}
    if request.centre and request.size_mm is not None:
        size_px = request.size_px + 2 * round(request.size_px * MARGIN)
        update["size_px"], update["size_mm"] = size_px, request.size_mm * size_px / request.size_px
        count = request.slices.count + 2 * MARGIN_SLICES
        update["slices"] = request.slices.model_copy(update={"count": count})
    return request.model_copy(update=update)


def stored(unit: str, request: ViewRequest) -> CacheRequest:
    """The file that holds a view: a level's view of its left foramen lies with those of (level, left)."""
    place = request.place(UNITS[unit][0])
    return CacheRequest(KIND_OF[place.level is not None, place.side is not None], widened(request.anywhere))


def requests_of(members: Iterable[MemberRecipe]) -> list[CacheRequest]:
    """All different files that these networks need."""
    return list(dict.fromkeys(stored(m.member.unit, view) for m in members for view in m.member.inputs))


@dataclass(frozen=True)
class CachedView:
    """A view of N = studies × units, studies first."""

    pixels: np.ndarray
    """(M, slice, H, W) uint8, mapped: a whole file, of which this may be a part."""
    present: np.ndarray
    """(N,) bool: whether the view exists."""
    geometry: np.ndarray
    """(N, slice, 3, 3) origin, column step and row step of each slice in mm; NaN of blank ones."""
    places: np.ndarray | None = None
    """(N,) which of the file's M views these are; None = all."""

    def planes(self, index: int) -> tuple[Plane, ...]:
        """The planes of one view, slice by slice; blank slices, at the end, have none."""
        return tuple(Plane(*vectors) for vectors in self.geometry[index] if np.isfinite(vectors).all())


@dataclass(frozen=True)
class Cache:
    """All views of a data set that a recipe needs, and its landmarks."""

    studies: tuple[str, ...]
    landmarks: dict[str, dict[str, np.ndarray]]
    """Study → row → (3,) patient mm, as annotated."""
    views: dict[CacheRequest, CachedView]
    points: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """The landmarks, and the middles of the stacks (kernels.lumbar.shape.STACK_CENTRES)."""

    def of(self, unit: str, request: ViewRequest) -> CachedView:
        """The cached view, with margin, of a request without."""
        file = stored(unit, request)
        whole = self.views[file]
        if file.unit == unit:
            return whole
        kept = UNITS[file.unit]
        first = np.array([kept.index(request.place(one)) for one in UNITS[unit]])
        places = (np.arange(len(self.studies))[:, None] * len(kept) + first).ravel()
        return CachedView(whole.pixels, whole.present[places], whole.geometry[places], places)


def build_cache(root: Path, tables: Tables, requests: Iterable[CacheRequest], out: Path, jobs: int) -> Cache:
    """Open the cache in `out`, after making what is not there yet.  Raises CacheError."""
    made_of = digest(tables.fingerprint, _inventory(root, tables), CUTTING)
    files = {request: out / f"{_name(request, made_of)}.npy" for request in requests}
    landmark_file = out / f"landmarks-{made_of[:16]}.json"
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        missing = {request: file for request, file in files.items() if not file.with_suffix(".npz").is_file()}
        if missing or not landmark_file.is_file():
            _make(root, tables, missing, landmark_file, jobs)
    lifted = json.loads(landmark_file.read_text())
    points = {study: {name: np.array(point) for name, point in named.items()} for study, named in lifted.items()}
    landmarks = {study: {n: point for n, point in one.items() if n in ROW_INDEX} for study, one in points.items()}
    views = {request: _open(file) for request, file in files.items()}
    return Cache(tuple(tables.labels.index), landmarks, views, points)


def _open(file: Path) -> CachedView:
    with np.load(file.with_suffix(".npz")) as index:
        return CachedView(np.load(file, mmap_mode="r"), index["present"], index["geometry"])


def _name(request: CacheRequest, made_of: str) -> str:
    its_own = digest(made_of, request.unit, request.view.model_dump(mode="json"))
    return f"{request.view.series}-{request.unit}-{request.view.size_px}px-{its_own[:16]}"


def _inventory(root: Path, tables: Tables) -> list[tuple[str, int]]:
    """Number of files of each series, so that a cache of a half-unpacked archive is not taken for that of the whole."""
    found = []
    for study in tables.labels.index:
        for series_id, _ in tables.series.get(study, []):
            folder = root / "train_images" / study / series_id
            found.append((series_id, len(os.listdir(folder)) if folder.is_dir() else 0))
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time make caches in a folder: a second one waits, and then finds them made."""
    with open(folder / ".lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process makes caches in %s: waiting for it", folder)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _make(root: Path, tables: Tables, files: Mapping[CacheRequest, Path], landmark_file: Path, jobs: int) -> None:
    """Decode every study once and fill all missing files; they get their names when all of them are complete."""
    out, studies = landmark_file.parent, list(tables.labels.index)
    parts = _begin(out, {request: (file, _shape(request, len(studies))) for request, file in files.items()})
    present = {request: np.zeros(_shape(request, len(studies))[0], bool) for request in files}
    geometry = {request: np.zeros((*_shape(request, len(studies))[:2], 3, 3)) for request in files}
    tasks = _tasks(root, tables, parts)
    landmarks: dict[str, dict[str, list[float]]] = {}
    problems: list[Problem] = []
    try:
        for one in tqdm(decode_all(tasks, jobs), total=len(tasks), unit="study", desc="decoding"):
            landmarks[studies[one.number]] = {row: point.tolist() for row, point in one.landmarks.items()}
            problems += one.problems
            for request, (here, planes) in one.views.items():
                its_own = slice(one.number * len(here), (one.number + 1) * len(here))
                present[request][its_own], geometry[request][its_own] = here, planes
    except BrokenProcessPool as error:
        raise CacheError("a decoding process died, most often for want of memory: use fewer with JOBS=") from error
    for request, file in files.items():
        with open(out / f"{file.stem}.part.npz", "wb") as stream:
            np.savez(stream, present=present[request], geometry=geometry[request])
        parts[request].replace(file)
        (out / f"{file.stem}.part.npz").replace(file.with_suffix(".npz"))
    _report(out / "problems.csv", problems)
    replace_json(landmark_file, landmarks)


def _begin(out: Path, wanted: Mapping[CacheRequest, tuple[Path, tuple[int, ...]]]) -> dict[CacheRequest, Path]:
    """Remove what a killed run left, and lay out the new files under temporary names.  Raises CacheError."""
    for left in out.glob("*.part.np?"):
        left.unlink()
    needed, free = sum(prod(shape) for _, shape in wanted.values()), shutil.disk_usage(out).free
    if needed > free:  # a mapped file on a full disk ends in a bus error, not in an exception
        raise CacheError(
            f"{out} needs {needed / 1e9:.1f} GB and has {free / 1e9:.1f} GB free: make room, or name another with RUNS="
        )
    log.info("making %d cache files, %.1f GB, in %s", len(wanted), needed / 1e9, out)
    new = {file.with_suffix(".npz") for file, _ in wanted.values()}
    if others := set(out.glob("*.npz")) - new:
        log.info("%d other cache files there were made of other data or for other networks", len(others))
    parts = {}
    for request, (file, shape) in wanted.items():
        parts[request] = file.with_suffix(".part.npy")
        np.lib.format.open_memmap(parts[request], "w+", np.uint8, shape).flush()
    return parts


def _shape(request: CacheRequest, studies: int) -> tuple[int, int, int, int]:
    size = request.view.size_px
    return studies * len(UNITS[request.unit]), request.view.slices.count, size, size


def _tasks(root: Path, tables: Tables, parts: dict[CacheRequest, Path]) -> list[Task]:
    columns = ["series_id", "instance", "row", "x", "y"]
    annotations = {
        study: [Annotation(*line) for line in one[columns].itertuples(index=False, name=None)]
        for study, one in tables.coordinates.groupby("study_id")
    }
    images = root / "train_images"
    return [
        Task(number, study, images / study, tables.series.get(study, []), annotations.get(study, []), parts)
        for number, study in enumerate(tables.labels.index)
    ]


def _report(path: Path, problems: list[Problem]) -> None:
    table = pd.DataFrame([vars(problem) for problem in problems], columns=["study", "where", "kind", "detail"])
    replace_text(path, table.to_csv(index=False))
    if problems:
        kinds = table["kind"].value_counts().to_dict()
        log.warning("%d problems while decoding, by kind: %s (all of them: %s)", len(problems), kinds, path)
