"""Crop caches: each study is decoded once, and what all networks need of it is kept as flat memory-mapped arrays.

A file of pixels a view request, (study × unit, slice, H, W) uint8, cut by kernels.lumbar.inputs.views at the annotated
landmarks; beside it one of the geometry, and an index that says which studies, and what all of it was made of.
Crops around landmarks are kept with a margin, at the same millimetres a pixel, so that rotation and jitter never meet
a border; the middle of a kept crop is, byte for byte, what the kernel cuts at the same landmark.
"""

from __future__ import annotations

import fcntl
import json
import logging
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError

import numpy as np

from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.labels import ROW_INDEX, UNITS
from kernels.lumbar.specs import ViewRequest
from training.data.cache.cache_journal import Wanted, shape_of
from training.data.cache.cache_making import CacheError, make
from training.data.cache.cache_sources import sources_of
from training.data.cache.decode import CacheRequest, geometry_file
from training.data.tables import Tables
from training.digests import digest
from training.recipe.schema import MemberRecipe

# Share of a crop's side that is kept beyond each border: a crop turned and sheared by 15 degrees stays inside.
MARGIN = 0.25
MARGIN_SLICES = 1
# The kind of unit that is of a level or not, and of a side or not.
KIND_OF = {(one.level is not None, one.side is not None): kind for kind, (one, *_) in UNITS.items()}
# What NumPy raises for files that are cut off, missing or spoilt.
DAMAGE = (OSError, ValueError, EOFError, KeyError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error)
log = logging.getLogger("cache")


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
    """(N, slice, 3, 3) origin, column step and row step of each slice in mm, mapped too; NaN of blank ones."""
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
    """The landmarks, and the middles of the stacks (kernels.lumbar.answers.spine_shape.STACK_CENTRES)."""

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
    """Open the cache in `out`, after making what is not there yet or is damaged.  Raises CacheError."""
    sources = sources_of(root, tables)
    made_of, studies = sources.digest, list(tables.labels.index)
    files = {request: out / f"{_name(request, made_of)}.npy" for request in requests}
    landmark_file = out / f"landmarks-{made_of[:16]}.json"
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        views, points = _opened(files, made_of, studies), _points(landmark_file)
        missing = {request: file for request, file in files.items() if request not in views}
        if missing or points is None:
            make(Wanted(out, made_of, missing, studies, landmark_file), root, tables, sources, jobs)
            views, points = _opened(files, made_of, studies), _points(landmark_file)
    if points is None or len(views) < len(files):
        raise CacheError(f"{out} does not give back what was written there: look after that disk, or name another")
    landmarks = {study: {n: point for n, point in one.items() if n in ROW_INDEX} for study, one in points.items()}
    return Cache(tuple(studies), landmarks, {request: views[request] for request in files}, points)


def _opened(files: Mapping[CacheRequest, Path], made_of: str, studies: list[str]) -> dict[CacheRequest, CachedView]:
    """The views that are there; of a damaged one it is said that it has to be made again."""
    views = {}
    for request, file in files.items():
        if not file.with_suffix(".npz").is_file():
            continue
        try:
            views[request] = open_view(file, shape_of(request, len(studies)), made_of)
        except DAMAGE as error:
            log.warning("%s is damaged and is made again: %s", file, error)
    return views


def open_view(file: Path, shape: tuple[int, ...], made_of: str) -> CachedView:
    """Map the files of a view.  Raises an error of DAMAGE for bad ones."""
    with np.load(file.with_suffix(".npz")) as index:
        present, its_own = index["present"], str(index["made_of"])
    pixels, geometry = (_mapped(one) for one in (file, geometry_file(file)))
    as_made = [
        (pixels.shape, pixels.dtype) == (shape, np.uint8),
        (geometry.shape, geometry.dtype) == ((*shape[:2], 3, 3), np.float64),
        (present.shape, present.dtype) == (shape[:1], bool) and its_own == made_of,
    ]
    if not all(as_made):
        raise ValueError("its shape, type or origin is not what was written")
    return CachedView(pixels, present, geometry)


def _mapped(file: Path) -> np.ndarray:
    """An array without a copy.  Raises ValueError for a file of another length than its header says."""
    array = np.load(file, mmap_mode="r")
    if not array.flags.c_contiguous or array.offset + array.nbytes != file.stat().st_size:
        raise ValueError("its header is not what was written")
    return array


def _points(file: Path) -> dict[str, dict[str, np.ndarray]] | None:
    """Landmarks by study; None where they have to be made."""
    try:
        lifted = json.loads(file.read_text(encoding="utf-8"))
        return {study: {name: np.array(point) for name, point in named.items()} for study, named in lifted.items()}
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        log.warning("%s is damaged and is made again: %s", file, error)
        return None


def _name(request: CacheRequest, made_of: str) -> str:
    its_own = digest(made_of, request.unit, request.view.model_dump(mode="json"))
    return f"{request.view.series}-{request.unit}-{request.view.size_px}px-{its_own[:16]}"


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
