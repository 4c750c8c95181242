"""Builds the files of a crop cache, and resumes a killed build.

Files are filled under temporary names; a journal beside them lists the studies whose crops are on the disk.  When all
files are complete they are renamed, the index, which marks a view as complete, last.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from concurrent.futures.process import BrokenProcessPool
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from kernels.lumbar.problems import summary
from kernels.lumbar.run.submission import replace_json, replace_text
from training.data.cache.cache_journal import Done, Wanted, begin_journal, clear, resumed, save
from training.data.cache.cache_sources import CropSources
from training.data.cache.decode import Decoded, Task, annotations_of, decode_all, geometry_file
from training.data.tables import Tables

# A killed build loses at most so many seconds of work; each save flushes all files.
SAVE_EVERY_S = 20.0
log = logging.getLogger("cache")


class CacheError(Exception):
    """A cache that cannot be made, with the reason."""


def make(wanted: Wanted, root: Path, tables: Tables, sources: CropSources, jobs: int) -> None:
    """Decode every study once and fill all files.  Raises CacheError."""
    found = resumed(wanted)
    if found is None:
        clear(wanted)
    _check_space(wanted)
    journal, done = found if found is not None else (_begin(wanted), {})
    _log_start(wanted, len(done), sources)
    tasks = [one for one in _tasks(wanted, root, tables) if one.study not in done]
    unsaved: list[str] = []
    saved_s = time.monotonic()
    try:
        with tqdm(initial=len(done), total=len(wanted.studies), unit="study", desc="decoding") as bar:
            for one in decode_all(tasks, jobs):
                line = _line(wanted, one)
                done[line["study"]] = line
                unsaved.append(json.dumps(line))
                bar.update()
                if time.monotonic() - saved_s > SAVE_EVERY_S:
                    save(wanted, journal, unsaved)
                    saved_s = time.monotonic()
    except BrokenProcessPool as error:
        raise CacheError("a decoding process died, most often for lack of memory: use fewer with JOBS=") from error
    finally:
        save(wanted, journal, unsaved)
    _finish(wanted, done)


def _check_space(wanted: Wanted) -> None:
    """Raises CacheError on a full disk, where a memory-mapped file would end in a bus error."""
    needed = sum(prod(shape) * kind.itemsize for shape, kind in wanted.layouts().values())
    missing = needed - sum(part.stat().st_blocks * 512 for part in wanted.layouts() if part.is_file())
    free = shutil.disk_usage(wanted.out).free
    if missing > free:
        raise CacheError(
            f"{wanted.out} needs {missing / 1e9:.1f} GB and has {free / 1e9:.1f} GB free: "
            "make room, or name another with RUNS="
        )


def _begin(wanted: Wanted) -> Path:
    """Create the files under temporary names."""
    for part, (shape, kind) in wanted.layouts().items():
        np.lib.format.open_memmap(part, "w+", kind, shape).flush()
    return begin_journal(wanted)


def _log_start(wanted: Wanted, done: int, sources: CropSources) -> None:
    resumed = f"; {done} studies are done already" if done else ""
    log.info("making %d cache files of %d studies in %s%s", len(wanted.files), len(wanted.studies), wanted.out, resumed)
    if sources.missing:
        first = ", ".join(sources.missing[:3])
        some = (len(sources.missing), sources.series, first)
        log.warning("%d of %d series of the tables have no file, the first: %s", *some)
    else:
        log.info("all %d series of the tables are there", sources.series)
    new = {file.with_suffix(".npz") for file in wanted.files.values()}
    if others := set(wanted.out.glob("*.npz")) - new:
        log.info(
            "%d other cache files there were made of other data, by other code or for other networks: "
            "remove %s when nothing runs, to free their space",
            len(others),
            wanted.out,
        )


def _tasks(wanted: Wanted, root: Path, tables: Tables) -> list[Task]:
    annotations = {study: annotations_of(own) for study, own in tables.coordinates.groupby("study_id")}
    images, parts = root / "train_images", {request: wanted.part(request) for request in wanted.files}
    return [
        Task(number, study, images / study, tables.series.get(study, []), annotations.get(study, []), parts)
        for number, study in enumerate(wanted.studies)
    ]


def _line(wanted: Wanted, one: Decoded) -> dict[str, Any]:
    return {
        "study": wanted.studies[one.number],
        "landmarks": {row: point.tolist() for row, point in one.landmarks.items()},
        "problems": [[problem.study, problem.where, problem.kind, problem.detail] for problem in one.problems],
        "present": {wanted.files[request].name: units.tolist() for request, units in one.present.items()},
    }


def _finish(wanted: Wanted, done: Done) -> None:
    """Landmarks first; the index of each view last, as it marks the view as complete."""
    _report(wanted.out / "problems.csv", [problem for line in done.values() for problem in line["problems"]])
    replace_json(wanted.landmark_file, {study: done[study]["landmarks"] for study in wanted.studies})
    for request, file in wanted.files.items():
        present = np.concatenate([done[study]["present"][file.name] for study in wanted.studies])
        with open(wanted.part(request).with_suffix(".npz"), "wb") as stream:
            np.savez(stream, present=present, studies=np.array(wanted.studies), made_of=np.array(wanted.made_of))
            stream.flush()
            os.fsync(stream.fileno())
    for request, file in wanted.files.items():
        part = wanted.part(request)
        part.replace(file)
        geometry_file(part).replace(geometry_file(file))
        part.with_suffix(".npz").replace(file.with_suffix(".npz"))
    clear(wanted)


def _report(path: Path, problems: list[list[str]]) -> None:
    columns = ["study", "where", "kind", "detail"]
    table = pd.DataFrame(problems, columns=columns)
    replace_text(path, table.to_csv(index=False))
    if problems:
        log.warning(
            "while decoding, %s", summary([dict(zip(columns, one, strict=True)) for one in problems], str(path))
        )
