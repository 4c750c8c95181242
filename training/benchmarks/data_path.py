"""The data path of training, measured in one run: loader, usual ways, growth of the crop cache, sizes, GPU.

    python -m training.benchmarks.data_path [--data DIR] [--studies N] [--jobs N] [--out FILE] [--markdown] [--quick]

Without --data a phantom of full-size images is made for the run.  The loader's rate is held against that of a network
that trains on the same crops, and against PNG and DICOM datasets of them.  Caches grow by the same studies under
several numbers.  With a GPU, augmentation and networks run there.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from tqdm import tqdm

from kernels.lumbar.networks.devices import default_device
from kernels.lumbar.run.submission import replace_json
from training.benchmarks import cache_growth as growing
from training.benchmarks import data_path_tables as tables_of
from training.benchmarks import loader_rate as loading
from training.benchmarks.cache_growth import BenchError
from training.benchmarks.data_path_tables import Loaded
from training.benchmarks.loader_rate import Size
from training.benchmarks.table_text import Table, markdown
from training.benchmarks.usual_datasets import WORKERS, rate_of
from training.data.cache.crop_cache import CacheError, build_cache, stored
from training.data.tables import TablesError, read_tables
from training.networks.parts import torchvision_shim
from training.phantom.dataset import Options, make_dataset
from training.recipe.schema import Profile

RECIPE = "split_and_global"


@dataclass(frozen=True)
class DataPathScope:
    """How much is measured."""

    studies: int
    """That are drawn, or taken of --data."""
    scale: float
    counts: tuple[int, ...]
    """Studies of the growing caches."""
    profile: Profile
    jobs: int
    rounds: int
    file_bytes: int
    most_s: float
    """For each of augmentation and model."""
    stacks: int
    """That the usual ways decode."""
    sizes: tuple[Size, ...]
    """The last one is that of the usual ways, and of the GPU's load."""


FULL = DataPathScope(
    studies=25,
    scale=1.0,
    counts=(100, 200, 400),
    profile="bench",
    jobs=2,
    rounds=5,
    file_bytes=1 << 30,
    most_s=10.0,
    stacks=100,
    sizes=(
        Size("test_byobnet", 48, 16, is_trained=True),
        Size("test_byobnet", 64, 16, is_trained=False),
        Size("convnext_tiny", 128, 8, is_trained=True),
    ),
)
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
GPU_BATCH = 64


def bench(data: Path, effort: DataPathScope, scratch: Path, device: torch.device) -> list[Table]:
    """All tables.  Raises BenchError, CacheError, TablesError."""
    studies = list(read_tables(data).labels.index)[: effort.studies]
    base = scratch / "base"
    growing.link_studies(base, data, studies, len(studies))
    grown = growing.grow(data, studies, effort.counts, scratch, effort.jobs, RECIPE, effort.profile)
    recipe = f"{RECIPE}/{effort.profile}"
    return [
        *loader_tables(base, effort, scratch, device),
        growing.growth(grown, recipe, effort.jobs),
        growing.sizes(grown, effort.jobs, growing.own_mib()),
    ]


def loader_tables(data: Path, effort: DataPathScope, scratch: Path, device: torch.device) -> list[Table]:
    """Everything that is measured of the loader."""
    tables = read_tables(data)
    cache = build_cache(data, tables, loading.requests_of(effort.sizes), scratch / "crops", effort.jobs)
    found, share, rates = [], None, {}
    for size in tqdm(effort.sizes, unit="size", desc="loader"):
        file = scratch / "repeated.npy"
        given = loading.repeated(cache, tables, size, file, effort.file_bytes, device)
        first, best = loading.loading(given, effort.rounds)
        augmented = loading.augmenting(given, effort.most_s, device)
        model = loading.training(given, device, effort.most_s) if size.is_trained else None
        measured = (given.stack_bytes, given.bytes, given.stacks, first, best, augmented, model)
        found.append(Loaded(size, *measured))
        if size is effort.sizes[-1] and device.type == "cuda":
            share = loading.busy_share(given, device)
        file.unlink()
    entry = loading.grader(effort.sizes[-1])
    view = cache.views[stored(entry.member.unit, entry.member.inputs[0])]
    ways = loading.usual(data, tables, view, entry, effort.stacks, scratch)
    with tqdm(total=len(ways) * len(WORKERS), unit="way", desc="usual ways") as bar:
        for way, dataset in ways.items():
            for workers in WORKERS:
                rates[way, workers] = rate_of(dataset, workers)
                bar.update()
    last = found[-1]
    return [tables_of.loader(found, device.type), tables_of.usual(rates, last), tables_of.gpu(share, last.name)]


def machine(started_s: float, load_before: float) -> dict[str, object]:
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    load = {"load_before": round(load_before, 2), "load_after": round(os.getloadavg()[0], 2)}
    versions = {"torch": torch.__version__, "opencv": cv2.__version__, "python": platform.python_version()}
    return {"cores": os.cpu_count(), "gpu": gpu, **load, **versions, "seconds": round(time.monotonic() - started_s)}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="training.benchmarks.data_path", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder in the competition's layout; default: a phantom, full-size")
    parser.add_argument("--studies", type=int, help=f"the smallest of the growing caches; default: {FULL.counts[0]}")
    parser.add_argument("--jobs", type=int, help=f"processes that decode; default: {FULL.jobs}")
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    parser.add_argument("--markdown", action="store_true", help="also print the table for the README")
    parser.add_argument("--quick", action="store_true", help="least of everything: shows that it works")
    return parser.parse_args(argv)


def effort_of(given: argparse.Namespace, device: torch.device) -> DataPathScope:
    """What was asked for."""
    effort = QUICK if given.quick else FULL
    changes: dict[str, object] = {}
    if given.studies:
        changes["counts"] = tuple(given.studies * times for times in (1, 2, 4))
    if given.jobs:
        changes["jobs"] = given.jobs
    if device.type == "cuda":
        changes["sizes"] = tuple(Size(one.backbone, one.size_px, GPU_BATCH, one.is_trained) for one in effort.sizes)
    return DataPathScope(**{**vars(effort), **changes})


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.  What is missing ends it with one sentence."""
    given = parse(argv)
    torchvision_shim.apply()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    device = default_device()
    effort = effort_of(given, device)
    started_s, load_before = time.monotonic(), os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory() as folder:
            scratch, data = Path(folder), given.data
            if data is None:
                data = scratch / "phantom"
                make_dataset(data, Options(train=effort.studies, test=0, seed=1, scale=effort.scale), jobs=effort.jobs)
            found = bench(data, effort, scratch, device)
    except (BenchError, CacheError, TablesError, OSError) as error:
        sys.stderr.write(f"bench-train stopped: {error}\n")
        return 1
    about = machine(started_s, load_before)
    said = [*(table.text() for table in found), ", ".join(f"{name} {value}" for name, value in about.items())]
    if given.markdown:
        said.append(markdown(found))
    sys.stdout.write("\n\n".join(said) + "\n")
    if given.out:
        tables = {table.key: table.record() for table in found}
        replace_json(given.out, {"machine": about, "tables": tables, "figures": [table.figures for table in found]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
