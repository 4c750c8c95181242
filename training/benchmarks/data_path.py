"""The data path of training, measured in one run: loader, usual ways, growth of the crop cache, sizes.

    python -m training.benchmarks.data_path [--data DIR] [--studies N] [--jobs N] [--out FILE] [--markdown] [--quick]

Without --data a phantom of full-size images is made for the run.  The loader's rate is compared with that of a network
that trains on the same crops, and with PNG and DICOM datasets of them.  Caches grow by the same studies under several
numbers.  With a GPU, augmentation and networks run there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from kernels.lumbar.networks.devices import default_device
from kernels.profiles import Profile
from training.benchmarks import cache_growth
from training.benchmarks.command import run_bench, speed_parser
from training.benchmarks.loader import Loader, Rate, Size, dataloader_rate, usual_datasets
from training.benchmarks.studies import link_training_studies
from training.benchmarks.tables import BenchError, Cell, Table
from training.data.cache.crop_cache import CacheError, build_cache
from training.data.tables import TablesError, read_tables
from training.networks.parts import torchvision_shim
from training.phantom.dataset import Options

RECIPE = "split_and_global"
# Stacks a second and core of a loader that no network waits for.
ENOUGH = 100_000
GPU_BATCH = 64
WORKERS = (0, 2)


@dataclass(frozen=True)
class DataPathScope:
    """How much is measured."""

    studies: int = 25
    """That are drawn, or taken of --data."""
    scale: float = 1.0
    counts: tuple[int, ...] = (100, 200, 400)
    """Studies of the growing caches."""
    profile: Profile = "bench"
    jobs: int = 2
    rounds: int = 5
    file_bytes: int = 1 << 30
    most_s: float = 10.0
    """For each of augmentation and network."""
    stacks: int = 100
    """That the usual ways decode."""
    sizes: tuple[Size, ...] = (
        Size("test_byobnet", 48, 16, is_trained=True),
        Size("test_byobnet", 64, 16, is_trained=False),
        Size("convnext_tiny", 128, 8, is_trained=True),
    )
    """The last one is that of the usual ways."""


FULL = DataPathScope()
QUICK = DataPathScope(
    studies=1,
    scale=0.25,
    counts=(1, 2),
    profile="smoke",
    jobs=1,
    rounds=1,
    file_bytes=1 << 22,
    most_s=0.0,
    stacks=4,
    sizes=(Size("test_byobnet", 32, 4, is_trained=True),),
)


@dataclass(frozen=True)
class Loaded:
    """Measurements of one size; rates in stacks a second."""

    size: Size
    stack_bytes: int
    file_bytes: int
    first: Rate
    best: Rate
    augmented: float
    model: float | None

    @property
    def name(self) -> str:
        """The network's."""
        return f"{self.size.backbone}, 5 × {self.size.size_px}²"


def bench(data: Path, scratch: Path, scope: DataPathScope, device: torch.device) -> list[Table]:
    """All tables.  Raises BenchError, CacheError, TablesError."""
    studies = list(read_tables(data).labels.index)[: scope.studies]
    base = scratch / "base"
    link_training_studies(base, data, studies, len(studies))
    built = cache_growth.build_caches(data, studies, scope.counts, scratch, scope.jobs, RECIPE, scope.profile)
    return [
        *loader_tables(base, scope, scratch, device),
        cache_growth.growth(built, f"{RECIPE}/{scope.profile}", scope.jobs),
        cache_growth.sizes(),
    ]


def loader_tables(data: Path, scope: DataPathScope, scratch: Path, device: torch.device) -> list[Table]:
    """Everything that is measured of the loader."""
    tables = read_tables(data)
    cache = build_cache(data, tables, [size.request() for size in scope.sizes], scratch / "crops", scope.jobs)
    found, rates = [], {}
    for size in tqdm(scope.sizes, unit="size", desc="loader"):
        file = scratch / "repeated.npy"
        given = Loader(cache, tables, size, file, scope.file_bytes, device)
        first, best = given.loading(scope.rounds)
        model = given.training(scope.most_s) if size.is_trained else None
        augmented = given.augmenting(scope.most_s)
        found.append(Loaded(size, given.stack_bytes, given.bytes, first, best, augmented, model))
        file.unlink()
    ways = usual_datasets(data, tables, cache, scope.sizes[-1], scope.stacks, scratch)
    for way, dataset in tqdm(ways.items(), unit="way", desc="usual ways"):
        rates[way] = {workers: dataloader_rate(dataset, workers) for workers in WORKERS}
    return [loader_table(found, device.type), usual_table(rates, found[-1])]


def loader_table(found: Sequence[Loaded], device: str) -> Table:
    """Rates by size of the crop; each stack is a grader's sample."""
    columns = ["network, crop", "KB a stack", "file GB", "first pass /s/core", "loaded /s/core", "GB/s"]
    columns += ["loaded /s, wall", "augmented /s", "model /s", "loader ÷ model", "augmented ÷ model"]
    table = Table("loader", f"Stacks from the mapped cache, one thread; augmentation and model: {device}", columns)
    for one in found:
        cpu, model, kb = one.best.cpu or 0.0, one.model, one.stack_bytes / 1e3
        ratios = (one.best.wall / model, one.augmented / model) if model else (None, None)
        row: list[Cell] = [one.name, kb, one.file_bytes / 1e9, one.first.cpu, cpu, cpu * kb / 1e6]
        table.rows.append([*row, one.best.wall, one.augmented, model, *ratios])
    largest_kb = max((one.best.cpu or 0) * one.stack_bytes for one in found) / ENOUGH / 1e3
    table.remarks = [
        "first pass: every page of the file is met for the first time; stacks have the margin that is kept for turning",
        f"at these GB/s {ENOUGH:,} stacks/s/core are met by stacks of up to {largest_kb:.0f} KB",
    ]
    return table


def usual_table(rates: Mapping[str, Mapping[int, Rate]], cache: Loaded) -> Table:
    """The same crops from the cache and through a DataLoader that decodes each sample; way → workers → rate."""
    columns = ["way", "workers", "stacks/s, wall", "stacks/s/core", "÷ model", "cache × as fast"]
    table = Table("usual", f"The same crops, {cache.stack_bytes / 1e3:.0f} KB a stack, by other ways", columns)
    for way, its in {"mapped cache": {0: cache.best}, **rates}.items():
        for workers, rate in its.items():
            of_model = rate.wall / cache.model if cache.model else None
            table.rows.append([way, workers, rate.wall, rate.cpu, of_model, cache.best.wall / rate.wall])
    table.remarks = ["wall: other load slows all of them; workers have run for an epoch already"]
    return table


def scope_of(options: argparse.Namespace, device: torch.device) -> DataPathScope:
    """The scope that the command line selects."""
    scope = QUICK if options.quick else FULL
    if options.studies:
        scope = replace(scope, counts=tuple(options.studies * times for times in (1, 2, 4)))
    if device.type == "cuda":
        scope = replace(scope, sizes=tuple(replace(size, batch=GPU_BATCH) for size in scope.sizes))
    return replace(scope, jobs=options.jobs or scope.jobs)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = speed_parser("data_path", __doc__)
    parser.add_argument("--studies", type=int, help=f"the smallest of the growing caches; default: {FULL.counts[0]}")
    parser.add_argument("--jobs", type=int, help=f"processes that decode; default: {FULL.jobs}")
    options = parser.parse_args(argv)
    torchvision_shim.apply()
    device = default_device()
    scope = scope_of(options, device)
    phantom = Options(train=scope.studies, test=0, seed=1, scale=scope.scale)
    errors = (BenchError, CacheError, TablesError)
    return run_bench("bench-train", options, phantom, scope.jobs, partial(bench, scope=scope, device=device), errors)


if __name__ == "__main__":
    sys.exit(main())
