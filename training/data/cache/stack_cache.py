"""The stack cache: every study of a data set decoded once, for all recipes, profiles and folds.

A file a study, written whole or not at all, so that a killed build resumes with the studies it lacks, and of changed
data only the changed studies are decoded again.  Crops are cut from the stacks as the kernel cuts them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kernels.disk import free_bytes
from kernels.locks import LOCK, exclusive
from kernels.lumbar.answers.spine_shape import stack_centres
from kernels.lumbar.dicom.file_header import UnreadableHeader, read_file_header
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.problems import Problem, summary
from kernels.lumbar.run.submission import replace_text
from training.data.annotations import annotations_of, lift_all
from training.data.cache.cache_sources import Sources, sources_of
from training.data.cache.decode import Task, decode_all
from training.data.cache.stack_file import DAMAGE, StaleError, read_stacks
from training.data.problem_table import as_csv
from training.data.tables import Tables

PROGRESS_AFTER_S = 5
# The size of the cache is estimated from the headers of so many studies.
STUDIES_TO_ESTIMATE = 24
# Of a file beside its pixels: geometry and names.
MOST_BESIDES_BYTES = 100_000
PROBLEMS = "problems.csv"
log = logging.getLogger("cache")


class CacheError(Exception):
    """A cache that cannot be made, with the reason."""


@dataclass(frozen=True)
class StackCache:
    """The decoded studies of a data set, memory-mapped, and its landmarks."""

    studies: tuple[str, ...]
    decoded: tuple[Study, ...]
    """One per study."""
    landmarks: Mapping[str, Mapping[str, np.ndarray]]
    """Study → row → (3,) patient mm, as annotated."""
    points: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    """The landmarks, and the centres of the stacks (kernels.lumbar.answers.spine_shape.STACK_CENTRES)."""


def stack_file(folder: Path, study: str) -> Path:
    """The file of a study in a cache."""
    return folder / f"{study}.safetensors"


def build_cache(root: Path, tables: Tables, out: Path, jobs: int, check_pixels: bool = False) -> StackCache:
    """Open the cache in `out`; studies that are missing, damaged or stale are decoded, by so many processes.

    `check_pixels`: read all pixels and compare them with their checksums, a minute for 25 GB.  A complete cache may lie
    on a read-only file system.  Raises CacheError.
    """
    sources = sources_of(root, tables)
    try:
        with _locked(out):
            found = _opened(out, sources, check_pixels)
            missing = [study for study in sources.digests if study not in found]
            if missing:
                _decode(root, tables, out, sources, missing, jobs)
                found |= _opened(out, sources, check_pixels, missing)
            if len(found) < len(sources.digests):
                raise CacheError(f"{out} does not return what was written there: check that disk, or name another")
            return _with_landmarks(found, tables, out)
    except OSError as error:
        raise CacheError(f"{out} cannot be used: {error}; remove what is in the way, or name another folder") from error


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the cache's lock; nothing changes on a read-only file system, and no lock can lie there."""
    if out.is_dir() and not os.access(out, os.W_OK):
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out / LOCK, f"another process makes a cache in {out}: waiting for it"):
        yield


def _opened(out: Path, sources: Sources, check_pixels: bool, some: Sequence[str] | None = None) -> dict[str, Study]:
    """The studies whose files are sound and current; logs the damaged ones, and how many are stale."""
    found, stale = {}, 0
    for study in tqdm(some or sources.digests, desc="opening the cache", unit="study", delay=PROGRESS_AFTER_S):
        file = stack_file(out, study)
        try:
            found[study] = read_stacks(file, sources.digests[study], check_pixels)
        except FileNotFoundError:
            continue
        except StaleError:
            stale += 1
        except DAMAGE as error:
            if file.is_dir():
                raise CacheError(f"{file} is a folder where a file of the cache would be: remove it") from error
            log.warning("%s is damaged and is made again: %s", file, error)
    if stale:
        log.info("of %d studies the files (names, sizes, times), the kinds or the decoding code changed", stale)
    return found


def _decode(root: Path, tables: Tables, out: Path, sources: Sources, missing: Sequence[str], jobs: int) -> None:
    """Write the files of the missing studies.  Raises CacheError."""
    for unfinished in out.glob(".*.part"):
        unfinished.unlink()
    _log_missing_series(sources)
    log.info(room_sentence(root, tables, out, missing))
    images = root / "train_images"
    tasks = [
        Task(study, images / study, tables.series.get(study, []), stack_file(out, study), sources.digests[study])
        for study in missing
    ]
    try:
        done = len(sources.digests) - len(missing)
        with tqdm(initial=done, total=len(sources.digests), unit="study", desc="decoding") as bar:
            for _ in decode_all(tasks, jobs):
                bar.update()
    except BrokenProcessPool as error:
        raise CacheError("a decoding process died, most often for lack of memory: use fewer with JOBS=") from error
    except OSError as error:
        reason = f"{error}; the same command resumes with the studies that are missing"
        raise CacheError(f"{out} cannot be written: {reason}") from error


def _log_missing_series(sources: Sources) -> None:
    if sources.missing:
        some = (len(sources.missing), sources.series, ", ".join(sources.missing[:3]))
        log.warning("%d of %d series of the tables have no file, the first: %s", *some)
    else:
        log.info("all %d series of the tables are there", sources.series)


def room_sentence(root: Path, tables: Tables, out: Path, missing: Sequence[str] | None = None) -> str:
    """What decoding will take, before it begins; "" where every study has a file.

    `missing`: the studies to decode; default: those without a file.  Raises CacheError where the disk has less room.
    """
    studies = [str(study) for study in tables.labels.index]
    files = {study: stack_file(out, study) for study in studies}
    todo = [study for study in studies if not files[study].is_file()] if missing is None else missing
    if not todo:
        return ""
    replaced = sum(files[study].stat().st_size for study in todo if files[study].is_file())
    needed, free = max(bytes_of(root, tables, todo) - replaced, 0), free_bytes(out)
    count = f"{len(todo)} {'study' if len(todo) == 1 else 'studies'}"
    if needed > free:
        raise CacheError(
            f"{out} needs about {needed / 1e9:.2g} GB for {count} and has {free / 1e9:.2g} GB free: "
            "make room, or name another with RUNS="
        )
    kept = f"; {len(studies) - len(todo)} of {len(studies)} are there" if len(todo) < len(studies) else ""
    return f"decoding {count} into {out}: about {needed / 1e9:.2g} GB needed, {free / 1e9:.3g} GB free{kept}"


def bytes_of(root: Path, tables: Tables, studies: Sequence[str]) -> int:
    """Room that studies take in a cache, estimated from the first header of each series of some of them."""
    places = np.unique(np.linspace(0, len(studies) - 1, STUDIES_TO_ESTIMATE).round().astype(int))
    some = [studies[place] for place in places]
    pixels = sum(
        _pixels_of(root / "train_images" / study / series)
        for study in some
        for series, _ in tables.series.get(study, [])
    )
    return round((pixels / len(some) + MOST_BESIDES_BYTES) * len(studies))


def _pixels_of(folder: Path) -> int:
    """Pixels of a series whose files are all like the first readable one; 0 where none is."""
    files = sorted(path for path in folder.glob("*") if not path.name.startswith("."))
    for file in files:
        with suppress(UnreadableHeader):  # decoding names it
            header = read_file_header(file).frames[0]
            if pixels := header.rows * header.columns * header.frames:
                return len(files) * pixels
    return 0


def _with_landmarks(found: Mapping[str, Study], tables: Tables, out: Path) -> StackCache:
    """The cache of some studies; their problems go to a file beside it, which is announced if it changed."""
    annotations = {str(study): annotations_of(own) for study, own in tables.coordinates.groupby("study_id")}
    landmarks, points, decoded, problems = {}, {}, [], list[Problem]()
    for study in map(str, tables.labels.index):
        its = found[study]
        landmarks[study] = lift_all(its, annotations.get(study, []))
        points[study] = landmarks[study] | stack_centres(its)
        problems += its.problems
        decoded.append(replace(its, source_planes={}))  # needed no more, and large
    _report(out / PROBLEMS, problems)
    return StackCache(tuple(landmarks), tuple(decoded), landmarks, points)


def _report(path: Path, problems: Sequence[Problem]) -> None:
    text = as_csv(problems)
    is_known = path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text
    if is_known or not os.access(path.parent, os.W_OK):
        return
    replace_text(path, text)
    if problems:
        log.warning("while decoding, %s", summary(map(asdict, problems), str(path)))
