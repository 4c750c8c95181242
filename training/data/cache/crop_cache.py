"""Crop caches: each study is decoded once into memory-mapped arrays with the views of all networks.

One file of pixels for each view request, (study × unit, slice, H, W) uint8, cut by kernels.lumbar.inputs.views at the
annotated landmarks; beside it the geometry, and an index with the studies and the digest of the inputs.  Crops around
landmarks have a margin, at the same millimetres a pixel, so that rotation and jitter stay inside; the centre of a
cached crop is, byte for byte, what the kernel cuts at the same landmark.
"""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from collections.abc import Iterable, Mapping
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
from training.locks import LOCK, exclusive
from training.recipe_schema.schema import MemberRecipe

# Margin at each border as a share of the crop's side: a crop rotated and sheared by 15 degrees stays inside.
MARGIN = 0.25
MARGIN_SLICES = 1
# (has a level, has a side) → kind of unit.
KIND_OF = {(one.level is not None, one.side is not None): kind for kind, (one, *_) in UNITS.items()}
# What NumPy raises for truncated, missing or corrupt files.
DAMAGE = (OSError, ValueError, EOFError, KeyError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error)
log = logging.getLogger("cache")


def widened(request: ViewRequest) -> ViewRequest:
    """The request as it is cached, with margin; whole images have none, and landmark maps are drawn on demand."""
    update: dict[str, object] = {"normalisation": "unit", "marks": ()}
    if request.centre and request.size_mm is not None:
        size_px = request.size_px + 2 * round(request.size_px * MARGIN)
        update["size_px"], update["size_mm"] = size_px, request.size_mm * size_px / request.size_px
        count = request.slices.count + 2 * MARGIN_SLICES
        update["slices"] = request.slices.model_copy(update={"count": count})
    return request.model_copy(update=update)


def stored(unit: str, request: ViewRequest) -> CacheRequest:
    """The cache file of a view; a level's view of its left foramen is stored with those of (level, left)."""
    place = request.place(UNITS[unit][0])
    return CacheRequest(KIND_OF[place.level is not None, place.side is not None], widened(request.anywhere))


def requests_of(members: Iterable[MemberRecipe]) -> list[CacheRequest]:
    """The distinct cache files of these networks."""
    return list(dict.fromkeys(stored(m.member.unit, view) for m in members for view in m.member.inputs))


@dataclass(frozen=True)
class CachedView:
    """A view of N = studies × units, studies first."""

    pixels: np.ndarray
    """(M, slice, H, W) uint8, memory-mapped; the view may use a part of the file."""
    present: np.ndarray
    """(N,) bool: whether the view exists."""
    geometry: np.ndarray
    """(N, slice, 3, 3) origin, column step and row step of each slice in mm, memory-mapped; NaN = blank slice."""
    places: np.ndarray | None = None
    """(N,) index into the file's M views; None = all."""

    def planes(self, index: int) -> tuple[Plane, ...]:
        """The plane of each slice of one view; blank slices, at the end, have none."""
        return tuple(Plane(*vectors) for vectors in self.geometry[index] if np.isfinite(vectors).all())


@dataclass(frozen=True)
class Cache:
    """The views of some networks on a data set, and its landmarks."""

    studies: tuple[str, ...]
    landmarks: dict[str, dict[str, np.ndarray]]
    """Study → row → (3,) patient mm, as annotated."""
    views: dict[CacheRequest, CachedView]
    points: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """The landmarks, and the centres of the stacks (kernels.lumbar.answers.spine_shape.STACK_CENTRES)."""

    def of(self, unit: str, request: ViewRequest) -> CachedView:
        """The cached view, with margin, of a request."""
        file = stored(unit, request)
        whole = self.views[file]
        if file.unit == unit:
            return whole
        kept = UNITS[file.unit]
        first = np.array([kept.index(request.place(one)) for one in UNITS[unit]])
        places = (np.arange(len(self.studies))[:, None] * len(kept) + first).ravel()
        return CachedView(whole.pixels, whole.present[places], whole.geometry[places], places)


def build_cache(root: Path, tables: Tables, requests: Iterable[CacheRequest], out: Path, jobs: int) -> Cache:
    """Open the cache in `out`; missing and damaged files are made.  Raises CacheError."""
    sources = sources_of(root, tables)
    made_of, studies = sources.digest, list(tables.labels.index)
    files = {request: out / f"{_name(request, made_of)}.npy" for request in requests}
    landmark_file = out / f"landmarks-{made_of[:16]}.json"
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out / LOCK, f"another process makes caches in {out}: waiting for it"):
        views, points = _opened(files, made_of, studies), _points(landmark_file)
        missing = {request: file for request, file in files.items() if request not in views}
        if missing or points is None:
            make(Wanted(out, made_of, missing, studies, landmark_file), root, tables, sources, jobs)
            views, points = _opened(files, made_of, studies), _points(landmark_file)
    if points is None or len(views) < len(files):
        raise CacheError(f"{out} does not return what was written there: check that disk, or name another")
    landmarks = {study: {n: point for n, point in one.items() if n in ROW_INDEX} for study, one in points.items()}
    return Cache(tuple(studies), landmarks, {request: views[request] for request in files}, points)


def _opened(files: Mapping[CacheRequest, Path], made_of: str, studies: list[str]) -> dict[CacheRequest, CachedView]:
    """The views whose files exist and are sound; logs the damaged ones."""
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
    """Memory-map the files of a view.  Raises an error of DAMAGE."""
    with np.load(file.with_suffix(".npz")) as index:
        present, found = index["present"], str(index["made_of"])
    pixels, geometry = (_mapped(one) for one in (file, geometry_file(file)))
    as_made = [
        (pixels.shape, pixels.dtype) == (shape, np.uint8),
        (geometry.shape, geometry.dtype) == ((*shape[:2], 3, 3), np.float64),
        (present.shape, present.dtype) == (shape[:1], bool) and found == made_of,
    ]
    if not all(as_made):
        raise ValueError("its shape, type or origin is not what was written")
    return CachedView(pixels, present, geometry)


def _mapped(file: Path) -> np.ndarray:
    """A memory-mapped array.  Raises ValueError if the file's size does not match its header."""
    array = np.load(file, mmap_mode="r")
    if not array.flags.c_contiguous or array.offset + array.nbytes != file.stat().st_size:
        raise ValueError("its header is not what was written")
    return array


def _points(file: Path) -> dict[str, dict[str, np.ndarray]] | None:
    """Study → point → mm; None if the file is missing or damaged."""
    try:
        lifted = json.loads(file.read_text(encoding="utf-8"))
        return {study: {name: np.array(point) for name, point in named.items()} for study, named in lifted.items()}
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        log.warning("%s is damaged and is made again: %s", file, error)
        return None


def _name(request: CacheRequest, made_of: str) -> str:
    key = digest(made_of, request.unit, request.view.model_dump(mode="json"))
    return f"{request.view.series}-{request.unit}-{request.view.size_px}px-{key[:16]}"
