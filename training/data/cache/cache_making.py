"""Makes the files of a crop cache, and goes on where a killed run stopped.

Files grow under temporary names.  A journal beside them names the studies whose crops are on the disk; the files get
their names when all of them are complete, and the index, which says that a view is whole, comes last.
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

from kernels.lumbar.problems import Problem, summary
from kernels.lumbar.run.submission import replace_json, replace_text
from training.data.cache.cache_journal import Made, Wanted, begin_journal, clear, resumed, save
from training.data.cache.cache_sources import CropSources
from training.data.cache.decode import Annotation, Decoded, Task, decode_all, geometry_file
from training.data.tables import Tables

# A killed run loses what it did in so many seconds at most; to save it all files are flushed.
SAVE_EVERY_S = 20.0
log = logging.getLogger("cache")


class CacheError(Exception):
    """A cache that cannot be made, and why."""


def make(wanted: Wanted, root: Path, tables: Tables, sources: CropSources, jobs: int) -> None:
    """Decode every study once and fill all files.  Raises CacheError."""
    found = resumed(wanted)
    if found is None:
        clear(wanted)
    _check_room(wanted)
    journal, made = found if found is not None else (_begin(wanted), Made())
    _tell(wanted, made, sources)
    tasks = [one for one in _tasks(wanted, root, tables) if one.study not in made.landmarks]
    unsaved: list[str] = []
    saved_s = time.monotonic()
    try:
        with tqdm(initial=len(made.landmarks), total=len(wanted.studies), unit="study", desc="decoding") as bar:
            for one in decode_all(tasks, jobs):
                line = _line(wanted, one)
                made.add(line)
                unsaved.append(json.dumps(line))
                bar.update()
                if time.monotonic() - saved_s > SAVE_EVERY_S:
                    save(wanted, journal, unsaved)
                    saved_s = time.monotonic()
    except BrokenProcessPool as error:
        raise CacheError("a decoding process died, most often for want of memory: use fewer with JOBS=") from error
    finally:
        save(wanted, journal, unsaved)
    _finish(wanted, made)


def _check_room(wanted: Wanted) -> None:
    """Raises CacheError: a mapped file on a full disk ends in a bus error, not in an exception."""
    needed = sum(prod(shape) * kind.itemsize for shape, kind in wanted.layouts().values())
    missing = needed - sum(part.stat().st_blocks * 512 for part in wanted.layouts() if part.is_file())
    free = shutil.disk_usage(wanted.out).free
    if missing > free:
        raise CacheError(
            f"{wanted.out} needs {missing / 1e9:.1f} GB and has {free / 1e9:.1f} GB free: "
            "make room, or name another with RUNS="
        )


def _begin(wanted: Wanted) -> Path:
    """Lay out the new files under temporary names."""
    for part, (shape, kind) in wanted.layouts().items():
        np.lib.format.open_memmap(part, "w+", kind, shape).flush()
    return begin_journal(wanted)


def _tell(wanted: Wanted, made: Made, sources: CropSources) -> None:
    done = f"; {len(made.landmarks)} studies are done already" if made.landmarks else ""
    log.info("making %d cache files of %d studies in %s%s", len(wanted.files), len(wanted.studies), wanted.out, done)
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
            "remove %s when nothing runs, to free their room",
            len(others),
            wanted.out,
        )


def _tasks(wanted: Wanted, root: Path, tables: Tables) -> list[Task]:
    columns = ["series_id", "instance", "row", "x", "y"]
    annotations = {
        study: [Annotation(*line) for line in one[columns].itertuples(index=False, name=None)]
        for study, one in tables.coordinates.groupby("study_id")
    }
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


def _finish(wanted: Wanted, made: Made) -> None:
    """Landmarks first, as they need no file; of each view the index last, as it says that the others are whole."""
    _report(wanted.out / "problems.csv", made.problems)
    replace_json(wanted.landmark_file, {study: made.landmarks[study] for study in wanted.studies})
    for request, file in wanted.files.items():
        present = np.concatenate([made.present[study][file.name] for study in wanted.studies])
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


def _report(path: Path, problems: list[Problem]) -> None:
    table = pd.DataFrame([vars(problem) for problem in problems], columns=["study", "where", "kind", "detail"])
    replace_text(path, table.to_csv(index=False))
    if problems:
        log.warning("while decoding, %s", summary(map(vars, problems), str(path)))
