"""What the crop cache takes with more and more studies, and what all recipes' caches take at the real size."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from training.benchmarks.table_text import Table
from training.data.cache.crop_cache import requests_of
from training.data.cache.crop_groups import bytes_of
from training.data.tables import TABLES
from training.recipe.load import load_named, names_of
from training.recipe.schema import MemberRecipe, Profile

REAL_STUDIES = 1975
MACHINE_GIB = 24
# Called so where the straight line misses no time by more, and where memory grows no further.
LINEAR, FLAT = 0.05, 1.05


class BenchError(Exception):
    """What cannot be measured, and why."""


@dataclass(frozen=True)
class Grown:
    """A cache of some number of studies."""

    studies: int
    wall_s: float
    cpu_s: float
    """Of all processes."""
    peak_mib: float
    """Of the process that makes the cache."""
    decoder_mib: float
    """Of the largest of the processes that decode for it; 0 where it does that itself."""
    bytes: int


def link_studies(folder: Path, data: Path, studies: Sequence[str], count: int) -> None:
    """A competition's folder of `count` studies: these ones under new numbers, as often as it takes."""
    (folder / "train_images").mkdir(parents=True)
    numbers = pd.DataFrame(
        [(studies[number % len(studies)], str(10**6 + number)) for number in range(count)], columns=["study_id", "new"]
    )
    for study, new in numbers.itertuples(index=False, name=None):
        (folder / "train_images" / new).symlink_to((data / "train_images" / study).resolve())
    for name in TABLES:
        table = pd.read_csv(data / name, dtype=str, keep_default_na=False)
        linked = numbers.merge(table, on="study_id", sort=False)
        linked.drop(columns="study_id").rename(columns={"new": "study_id"}).to_csv(folder / name, index=False)


def grow(
    data: Path, studies: Sequence[str], counts: Sequence[int], scratch: Path, jobs: int, recipe: str, profile: Profile
) -> list[Grown]:
    """Make a cache of each number of studies in a process of its own.  Raises BenchError."""
    found = []
    for count in counts:
        linked, cache, record = scratch / f"linked{count}", scratch / f"cache{count}", scratch / f"grown{count}.json"
        link_studies(linked, data, studies, count)
        given = [str(one) for one in (record, linked, cache, jobs, recipe, profile)]
        done = subprocess.run([sys.executable, "-m", "training.benchmarks.data_path_child", *given])
        if done.returncode:
            raise BenchError(f"the cache of {count} studies could not be made: exit code {done.returncode}")
        found.append(Grown(studies=count, **json.loads(record.read_text(encoding="utf-8"))))
        shutil.rmtree(cache)
    return found


def growth(found: Sequence[Grown], recipe: str, jobs: int) -> Table:
    """The table, with time and memory judged."""
    columns = ["studies", "wall s", "CPU s", "CPU s a study", "MB a study", "peak MiB", "of a decoder"]
    table = Table("growth", f"The crop cache of {recipe}, {jobs} decoding processes", columns)
    for one in found:
        row = [one.studies, one.wall_s, one.cpu_s, one.cpu_s / one.studies, one.bytes / one.studies / 1e6]
        table.rows.append([*row, one.peak_mib, one.decoder_mib or None])
    counts, cpu_s = np.array([one.studies for one in found]), np.array([one.cpu_s for one in found])
    each_s, once_s = np.polyfit(counts, cpu_s, 1)
    miss = float(np.abs(once_s + each_s * counts - cpu_s).max() / cpu_s.max())
    first, last = found[0], found[-1]
    memory = max(last.peak_mib / first.peak_mib, last.decoder_mib / first.decoder_mib if first.decoder_mib else 0.0)
    linear, flat = "linear" if miss <= LINEAR else "NOT linear", "flat" if memory <= FLAT else "NOT flat"
    wall_s = last.wall_s + (last.wall_s - first.wall_s) / (last.studies - first.studies) * (REAL_STUDIES - last.studies)
    real_gb = last.bytes / last.studies * REAL_STUDIES / 1e9
    table.remarks = [
        f"CPU seconds = {once_s:.3g} + {each_s:.3g} a study, which misses by {100 * miss:.2g} % at most: {linear}",
        f"{last.studies / first.studies:.3g} × the studies take {memory:.3g} × the memory: {flat}",
        f"{REAL_STUDIES:,} studies: {wall_s / 60:.1f} minutes, {real_gb:.1f} GB",
        "the same studies stand under several numbers, so that their files are read from memory",
    ]
    shown = [", ".join(text) for text in zip(*((f"{o.cpu_s:.0f}", f"{o.peak_mib:.0f}") for o in found), strict=True)]
    names = ", ".join(str(one.studies) for one in found)
    table.figures = [
        (f"crop cache of {names} studies, {recipe}, {jobs} processes", f"{shown[0]} CPU s: {linear}"),
        ("peak memory of it", f"{shown[1]} MiB: {flat}"),
        (f"… scaled to {REAL_STUDIES:,} studies", f"{wall_s / 60:.1f} minutes, {real_gb:.1f} GB"),
    ]
    return table


def own_mib() -> float | None:
    """Memory of this process that is its own, without mapped files; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(found[0]) / 1024 if found else None


def sizes(grown: Sequence[Grown], jobs: int, training_mib: float | None) -> Table:
    """What the full profile's caches take, and whether making and using them fits; nothing is made for it.

    `training_mib`: what a process that trained from a cache holds of its own.
    """
    columns = ["recipe", "networks", "files", "GB", "GB of the largest network", "median GB of a network"]
    table = Table("sizes", f"Crop caches of {REAL_STUDIES:,} studies, full profile", columns)
    everyone: list[MemberRecipe] = []
    for name in names_of([]):
        members = list(load_named(name, "full").members())
        everyone += members
        table.rows.append([name, *_sizes(members)])
    _, files, total_gb, largest_gb, median_gb = _sizes(everyone)
    table.rows.append(["all", *_sizes(everyone)])
    making_gib = max(one.peak_mib + jobs * one.decoder_mib for one in grown) / 1024
    holds_gib = making_gib if training_mib is None else max(making_gib, training_mib / 1024)
    room_gb = (MACHINE_GIB - holds_gib) * 1024**3 / 1e9
    within = sum(bytes_of([one], REAL_STUDIES) / 1e9 <= room_gb for one in everyone)
    verdict = "fits" if holds_gib < MACHINE_GIB else "does NOT fit"
    trains = "" if training_mib is None else f", a training from them {training_mib / 1024:.1f} GiB of its own"
    table.remarks = [
        f"{MACHINE_GIB} GiB: {verdict}: making caches takes {making_gib:.1f} GiB with {jobs} processes{trains}; files "
        f"are mapped, so that those of {within} of {len(everyone)} networks stay in memory whole, and what of the "
        f"others (up to {largest_gb:.0f} GB) does not is read from the disk again",
    ]
    table.figures = [
        (f"caches of {REAL_STUDIES:,} studies, full profile, all recipes", f"{total_gb:.0f} GB in {files} files"),
        ("… of one network: median, largest", f"{median_gb:.1f} GB, {largest_gb:.1f} GB"),
        (
            f"… on a machine of {MACHINE_GIB} GiB",
            f"{verdict}: {holds_gib:.1f} GiB are needed; {within} of {len(everyone)} networks' crops stay in memory",
        ),
    ]
    return table


def _sizes(members: Sequence[MemberRecipe]) -> list[int | float]:
    each = [bytes_of([one], REAL_STUDIES) / 1e9 for one in members]
    total = bytes_of(members, REAL_STUDIES) / 1e9
    return [len(members), len(requests_of(members)), total, max(each), float(np.median(each))]
