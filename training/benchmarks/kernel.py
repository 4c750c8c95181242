"""The design's numbers, measured side by side in one run on the same studies.

    python -m training.benchmarks.kernel [--data DIR] [--weights DIR] [--studies N] [--out FILE] [--markdown] [--quick]

Reading against the usual way and the limit; the whole kernel against its models alone, with more studies, two lanes,
batches; memory; and, with a GPU, the same there.  Without --data a phantom of full-size images is made for the run,
without --weights packages of untrained networks; with --weights the kernel is measured with that package alone, on a
GPU if there is one.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import torch

from kernels.lumbar.networks.weights import WeightsError
from kernels.lumbar.run.submission import replace_json
from training.benchmarks import half_precision, kernel_overhead
from training.benchmarks.kernel_overhead import OverheadPlan
from training.benchmarks.kernel_runs import BenchError, Runs
from training.benchmarks.reading import bench_loader, bench_reading
from training.benchmarks.table_text import Table, markdown
from training.benchmarks.untrained_packages import choose_studies, make_package, many_members, one_member, two_members
from training.fitting.export import ExportError
from training.phantom.dataset import Options, make_dataset
from training.recipe.schema import MemberRecipe

MANY = ("split_and_global", "slice_experts")
GIVEN = "given package"


@dataclass(frozen=True)
class KernelScope:
    """How much is measured."""

    studies: int
    scale: float
    rounds: int
    times: tuple[int, ...]
    batches: tuple[int, ...]
    packages: Mapping[str, Callable[[], Mapping[str, Sequence[MemberRecipe]]]]
    """Name → what makes its members, by route."""
    main: str
    """The package that all but the overlap is measured with."""


FULL = KernelScope(
    studies=6,
    scale=1.0,
    rounds=3,
    times=(1, 2, 4),
    batches=(1, 4, 8),
    packages={
        "one member, light": lambda: {"one": one_member("test_resnet", 96)},
        "one member": lambda: {"one": one_member("resnet18", 160)},
        "two members, light": lambda: {"two": two_members("test_resnet", 64)},
        "two members": lambda: {"two": two_members("resnet18", 64)},
        "many members": lambda: many_members(MANY),
    },
    main="two members",
)
QUICK = KernelScope(
    studies=1,
    scale=0.25,
    rounds=1,
    times=(1, 2),
    batches=(1, 2),
    packages={"two members": lambda: {"two": two_members("test_resnet", 32)}},
    main="two members",
)


def bench(data: Path, weights: Path | None, effort: KernelScope, scratch: Path) -> list[Table]:
    """All tables.  Raises BenchError, WeightsError, ExportError."""
    studies = choose_studies(data, effort.studies)
    if studies is None:
        raise BenchError(f"{data} holds no study: name a folder in the competition's layout (--data)")
    found = [bench_reading(studies, effort.rounds), bench_loader(effort.rounds)]
    if weights is not None:
        packages = {GIVEN: weights}
    else:
        folders = {name: scratch / name.replace(" ", "_").replace(",", "") for name in effort.packages}
        packages = {name: make_package(folders[name], members()) for name, members in effort.packages.items()}
    main = GIVEN if weights is not None else effort.main
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if weights is None or not gpus:
        plan = OverheadPlan("cpu", list(packages), main, effort.times, effort.batches)
        found += measured(plan, Runs(scratch / "cpu", studies, packages), 2, weights is not None)
    if not gpus:
        return [*found, half_precision.no_gpu()]
    plan = OverheadPlan("cuda:0", list(packages), main, effort.times, effort.batches[::-1])
    found += measured(plan, Runs(scratch / "cuda", studies, packages), gpus, weights is not None)
    return [*found, half_precision.precision(main, packages[main], torch.device("cuda:0"))]


def measured(plan: OverheadPlan, runs: Runs, lanes: int, project: bool) -> list[Table]:
    """The kernel's tables on one device."""
    results = runs.run(plan.orders(lanes))
    return [*kernel_overhead.tables(plan, results), *([kernel_overhead.projection(plan, results)] if project else [])]


def machine(started: float) -> dict[str, object]:
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    load = [round(one, 2) for one in os.getloadavg()]
    versions = {"torch": torch.__version__, "opencv": cv2.__version__, "python": platform.python_version()}
    return {"cores": os.cpu_count(), "gpu": gpu, "load": load, **versions, "seconds": round(time.monotonic() - started)}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="training.benchmarks.kernel", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="data in the competition's layout; default: a phantom, full-size")
    parser.add_argument("--weights", type=Path, help="a package; default: packages of untrained networks")
    parser.add_argument("--studies", type=int, help=f"so many are measured, once, twice …; default: {FULL.studies}")
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    parser.add_argument("--markdown", action="store_true", help="also print the table for the README")
    parser.add_argument("--quick", action="store_true", help="least studies, networks and runs: shows that it works")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.  What is missing ends it with one sentence."""
    options = parse(argv)
    effort = QUICK if options.quick else FULL
    if options.studies:
        effort = replace(effort, studies=options.studies)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            data = options.data
            if data is None:
                data = Path(scratch) / "phantom"
                make_dataset(data, Options(train=0, test=effort.studies, seed=1, scale=effort.scale), jobs=1)
            before = os.getloadavg()[0]
            found = bench(data, options.weights, effort, Path(scratch))
    except (BenchError, WeightsError, ExportError, OSError) as error:
        print(f"bench stopped: {error}", file=sys.stderr)
        return 1
    print("\n\n".join(table.text() for table in found))
    about = {**machine(started), "load_before": round(before, 2)}
    print("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))
    if options.markdown:
        print("\n" + markdown(found))
    if options.out:
        tables = {table.key: table.record() for table in found}
        replace_json(options.out, {"machine": about, "tables": tables, "figures": [table.figures for table in found]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
