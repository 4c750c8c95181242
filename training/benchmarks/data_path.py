"""The data path of training, measured in one run: loader, usual ways, growth of the stack cache.

    python -m training.benchmarks.data_path [--data DIR] [--studies N] [--jobs N] [--out FILE] [--markdown] [--quick]

Without --data a phantom of full-size images is made for the run.  The loader's rate is compared with that of the
networks that train on the same views, and with PNG and DICOM datasets of crops.  Caches grow by the same studies under
several numbers.  With a GPU, networks run there.
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
from training.benchmarks.loader import Crops, Loader, Rate, dataloader_rate, kinds_of_views, usual_datasets, with_batch
from training.benchmarks.studies import link_training_studies
from training.benchmarks.tables import BenchError, Table
from training.data.cache.stack_cache import CacheError, StackCache, build_cache
from training.data.tables import Tables, TablesError, read_tables
from training.networks.parts import torchvision_shim
from training.phantom.dataset import Options

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
    jobs: int = 2
    profile: Profile = "full"
    """Of the networks of the views."""
    batch: int = 2
    """Of these networks."""
    most_s: float = 10.0
    """For each measurement of a loader."""
    stacks: int = 100
    """That the usual ways decode."""
    crops: tuple[Crops, ...] = (Crops(48, 3), Crops(64, 3), Crops(224, 5), Crops(128, 5), Crops(512, 5, is_whole=True))
    """Those of a grader of split_and_global; the second to last are those of the usual ways."""


FULL = DataPathScope()
QUICK = DataPathScope(
    studies=1,
    scale=0.25,
    counts=(1, 2),
    jobs=1,
    profile="smoke",
    most_s=0.0,
    stacks=4,
    crops=(Crops(32, 3), Crops(48, 3, is_whole=True)),
)


def bench(data: Path, scratch: Path, scope: DataPathScope, device: torch.device) -> list[Table]:
    """All tables.  Raises BenchError, CacheError, TablesError."""
    studies = list(read_tables(data).labels.index)[: scope.studies]
    base = scratch / "base"
    link_training_studies(base, data, studies, len(studies))
    built = cache_growth.build_caches(data, studies, scope.counts, scratch, scope.jobs)
    return [*loader_tables(base, scope, scratch, device), cache_growth.growth(built, scope.jobs)]


def loader_tables(data: Path, scope: DataPathScope, scratch: Path, device: torch.device) -> list[Table]:
    """Everything that is measured of the loader."""
    tables = read_tables(data)
    cache = build_cache(data, tables, scratch / "stacks", scope.jobs)
    crops = {one: Loader(cache, tables, one.grader(), device) for one in scope.crops}
    usual = crops[scope.crops[-2]]
    best = usual.cutting(scope.most_s)
    rates = {"stack cache, cut anew": {0: best}}
    ways = usual_datasets(data, tables, usual, scope.stacks, scratch)
    for way, dataset in tqdm(ways.items(), unit="way", desc="usual ways"):
        rates[way] = {workers: dataloader_rate(dataset, workers) for workers in WORKERS}
    return [
        crops_table(crops, scope.most_s),
        usual_table(rates, scope.crops[-2].name, best),
        views_table(cache, tables, scope, device),
    ]


def crops_table(loaders: Mapping[Crops, Loader], most_s: float) -> Table:
    """Stacks a second and core, as training cuts them: rotated, jittered, from shifted windows."""
    columns = ["stack", "KB", "cut anew /s/core", "as the kernel's /s/core"]
    table = Table("crops", "Stacks cut from the cache, one thread", columns)
    for crops, loader in tqdm(loaders.items(), unit="size", desc="crops"):
        changed, plain = loader.cutting(most_s), loader.cutting(most_s, is_changed=False)
        table.rows.append([crops.name, loader.sample_bytes / 1e3, changed.cpu, plain.cpu])
    table.remarks = ["cut anew: rotation, shear, scale, jitter in mm and of the window, in the one sampling"]
    return table


def views_table(cache: StackCache, tables: Tables, scope: DataPathScope, device: torch.device) -> Table:
    """A network of each kind of view in the five recipes: how fast its samples are cut, and how fast it takes them."""
    columns = ["network", "views", "ms a sample", "cut /s/core", "model /s", "cut by 2 threads ÷ model"]
    kind = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    table = Table(
        "views", f"Samples a second of loader and network, profile {scope.profile}; network on {kind}", columns
    )
    for entry in tqdm(kinds_of_views(scope.profile), unit="network", desc="views"):
        loader = Loader(cache, tables, with_batch(entry, scope.batch), device)
        rate, model = loader.cutting(scope.most_s / 5).cpu or 0.0, loader.training(scope.most_s)
        first = entry.member.inputs[0]
        views = f"{len(entry.member.inputs)} × {first.slices.count} × {first.size_px}²"
        table.rows.append([entry.member.name, views, 1e3 / rate, rate, model, 2 * rate / model])
    table.remarks = [f"networks train on batches of {scope.batch}; a loader above 20 takes less than 5 % of a step"]
    return table


def usual_table(rates: Mapping[str, Mapping[int, Rate]], name: str, cache: Rate) -> Table:
    """The same crops from the cache and through a DataLoader that decodes each sample; way → workers → rate."""
    table = Table(
        "usual", f"The same stacks, {name}, by other ways", ["way", "workers", "/s, wall", "/s/core", "cache × as fast"]
    )
    for way, its in rates.items():
        for workers, rate in its.items():
            table.rows.append([way, workers, rate.wall, rate.cpu, cache.wall / rate.wall])
    table.remarks = [
        "wall: other load slows all of them; workers have run for an epoch already",
        "the other ways give finished crops that are still to be augmented; those of the cache are augmented",
    ]
    return table


def scope_of(options: argparse.Namespace, device: torch.device) -> DataPathScope:
    """The scope that the command line selects."""
    scope = QUICK if options.quick else FULL
    if options.studies:
        scope = replace(scope, counts=tuple(options.studies * times for times in (1, 2, 4)))
    if device.type == "cuda":
        scope = replace(scope, batch=GPU_BATCH)
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
