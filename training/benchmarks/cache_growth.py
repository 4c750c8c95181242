"""What the stack cache, which all recipes share, takes with more and more studies."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.benchmarks import process
from training.benchmarks.studies import link_training_studies
from training.benchmarks.tables import BenchError, Table
from training.data.cache.stack_cache import build_cache
from training.data.tables import read_tables

REAL_STUDIES = 1975
# Largest relative residual of a straight line through the times, and largest growth of memory, that count as such.
LINEAR, FLAT = 0.05, 1.05


@dataclass(frozen=True)
class BuiltCache:
    """What a cache of some number of studies took."""

    studies: int
    wall_s: float
    cpu_s: float
    """Of all processes."""
    peak_mib: float
    """Of the process that makes the cache."""
    decoder_mib: float
    """Of the largest decoding process; 0 where the first one decodes itself."""
    bytes: int


def build_caches(
    data: Path, studies: Sequence[str], counts: Sequence[int], scratch: Path, jobs: int
) -> list[BuiltCache]:
    """Make a cache of each number of studies in a process of its own.  Raises BenchError."""
    found = []
    for count in counts:
        linked, cache, record = scratch / f"linked{count}", scratch / f"cache{count}", scratch / f"cache{count}.json"
        link_training_studies(linked, data, studies, count)
        arguments = (record, linked, cache, jobs)
        ended = process.call(f"{__name__}:measured_cache", arguments, record.with_suffix(".log"))
        if ended.code:
            raise BenchError(f"the cache of {count} studies could not be made, code {ended.code}: {ended.log_tail}")
        found.append(BuiltCache(studies=count, **json.loads(record.read_text(encoding="utf-8"))))
        shutil.rmtree(cache)
    return found


def measured_cache(record: str, data: str, cache: str, jobs: str) -> None:
    """Make a cache in this process; what it took goes to the file `record`."""
    tables = read_tables(Path(data))
    started, before = time.monotonic(), os.times()
    build_cache(Path(data), tables, Path(cache), int(jobs))
    after = os.times()
    measured = {
        "wall_s": time.monotonic() - started,
        "cpu_s": sum(after[:4]) - sum(before[:4]),
        "peak_mib": process.peak_mib(),
        "decoder_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / process.RUSAGE_MIB,
        "bytes": sum(file.stat().st_size for file in Path(cache).iterdir()),
    }
    Path(record).write_text(json.dumps(measured), encoding="utf-8")


def growth(found: Sequence[BuiltCache], jobs: int) -> Table:
    """Time and memory by studies, with a straight line through the time."""
    columns = ["studies", "wall s", "CPU s", "CPU s a study", "MB a study", "peak MiB", "of a decoder"]
    table = Table("growth", f"The stack cache, {jobs} decoding processes", columns)
    for one in found:
        row = [one.studies, one.wall_s, one.cpu_s, one.cpu_s / one.studies, one.bytes / one.studies / 1e6]
        table.rows.append([*row, one.peak_mib, one.decoder_mib or None])
    counts, cpu_s = np.array([one.studies for one in found]), np.array([one.cpu_s for one in found])
    each_s, once_s = np.polyfit(counts, cpu_s, 1)
    residual = float(np.abs(once_s + each_s * counts - cpu_s).max() / cpu_s.max())
    first, last = found[0], found[-1]
    memory = max(last.peak_mib / first.peak_mib, last.decoder_mib / first.decoder_mib if first.decoder_mib else 0.0)
    linear, flat = "linear" if residual <= LINEAR else "NOT linear", "flat" if memory <= FLAT else "NOT flat"
    wall_s = last.wall_s + (last.wall_s - first.wall_s) / (last.studies - first.studies) * (REAL_STUDIES - last.studies)
    real_gb = last.bytes / last.studies * REAL_STUDIES / 1e9
    table.remarks = [
        f"CPU seconds = {once_s:.3g} + {each_s:.3g} a study, largest residual {100 * residual:.2g} %: {linear}",
        f"{last.studies / first.studies:.3g} × the studies take {memory:.3g} × the memory: {flat}",
        f"{REAL_STUDIES:,} studies: {wall_s / 60:.1f} minutes, {real_gb:.1f} GB for all recipes",
        "the same studies are linked under several numbers, so that their files are read from memory",
    ]
    return table
