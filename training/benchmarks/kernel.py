"""Speed, memory and scaling of the kernel, measured side by side in one run on the same studies.

    python -m training.benchmarks.kernel [--data DIR] [--weights DIR] [--studies N] [--out FILE] [--markdown] [--quick]

Reading against the usual way and its limits; the whole kernel against its networks' forwards alone, with more
studies, two workers, batches; and, with a GPU, the same there. Without --data a phantom of full-size images is made
for the run, without --weights packages of untrained networks; with --weights the kernel is measured with that package
alone, on a GPU if there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from kernels.lumbar.networks.weights import WeightsError
from training.benchmarks import parity
from training.benchmarks.command import run_bench, speed_parser
from training.benchmarks.kernel_run import KernelRun, kernel_options, run_kernel
from training.benchmarks.packages import make_package, one_member, smoke_members, two_members
from training.benchmarks.reading import bench_reading
from training.benchmarks.studies import Studies, choose_studies, link_test_studies
from training.benchmarks.tables import BenchError, Record, Table
from training.fitting.export import ExportError
from training.phantom.dataset import Options
from training.recipe_schema.schema import MemberRecipe

MANY = ("split_and_global", "slice_experts")
MAIN, GIVEN, NO_GPU = "two members", "given package", "no GPU: not measured"
HIDDEN_STUDIES = 722
# Memory and CPU seconds a study count as flat if they grow by no more than this with more studies.
FLAT_TIME, FLAT_MEMORY = 1.15, 1.05
LEAST_MODEL_MS = 150
# Column → clock of kernel_run.clocked_kernel.
SHARES = {"forwards": "forward", "waiting": "wait", "cutting": "cut", "loading": "load"}
CPU_COLUMNS = {"model CPU ms": "forwards", "cut CPU ms": "cutting", "read CPU ms": "reading"}


@dataclass(frozen=True)
class KernelScope:
    """How much is measured."""

    packages: Mapping[str, Callable[[], Mapping[str, Sequence[MemberRecipe]]]]
    """Name → what makes its members, by route; MAIN is in all tables, the others are in the first."""
    studies: int = 6
    scale: float = 1.0
    rounds: int = 3
    times: tuple[int, ...] = (1, 2, 4)
    """How often each study occurs."""
    batches: tuple[int, ...] = (1, 4, 8)


FULL = KernelScope(
    {
        "one member": lambda: {"one": one_member("resnet18", 160)},
        MAIN: lambda: {"two": two_members("resnet18", 64)},
        "many members": lambda: smoke_members(MANY),
    }
)
SMALL_PACKAGE = {MAIN: lambda: {"two": two_members("test_resnet", 32)}}
QUICK = KernelScope(SMALL_PACKAGE, studies=1, scale=0.25, rounds=1, times=(1, 2), batches=(1, 2))


class KernelRuns:
    """Runs of the kernel over the same studies, one after the other; each is made once."""

    def __init__(self, scratch: Path, studies: Studies, packages: Mapping[str, Path]) -> None:
        self._scratch, self._studies, self._packages = scratch, studies, packages
        self._done: dict[tuple[str, str, int, int], KernelRun] = {}

    def run(self, package: str, devices: str, batch: int, times: int) -> KernelRun:
        """Each study so many times, `batch` of them at once.  Raises BenchError where it fails or omits a study."""
        key = (package, devices, batch, times)
        if key not in self._done:
            sys.stderr.write(f"kernel: {package}, {devices}, studies × {times}, {batch} at once\n")
            competition = self._scratch / f"times-{times}"
            if not competition.is_dir():
                link_test_studies(competition, self._studies, times)
            out = self._scratch / f"run-{len(self._done)}-{devices[:4]}"
            run = run_kernel(kernel_options(self._packages[package], competition, out, devices, batch=batch), out)
            if faults := run.faults():
                raise BenchError(f"{package}: {faults[0]}")
            self._done[key] = run
        return self._done[key]


def bench(data: Path, scratch: Path, weights: Path | None, scope: KernelScope) -> list[Table]:
    """All tables.  Raises BenchError, WeightsError, ExportError."""
    studies = choose_studies(data, scope.studies)
    if studies is None:
        raise BenchError(f"{data} holds no study: name a folder in the competition's layout (--data)")
    found = [bench_reading(studies, scope.rounds)]
    if weights is not None:
        packages, main = {GIVEN: weights}, GIVEN
    else:
        folders = {name: scratch / name.replace(" ", "_") for name in scope.packages}
        packages = {name: make_package(folders[name], members()) for name, members in scope.packages.items()}
        main = MAIN
    runs = KernelRuns(scratch, studies, packages)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if weights is None or not gpus:
        found += device_tables("cpu", "cpu,cpu", scope, packages, main, runs)
    if not gpus:
        return [*found, Table("gpu", "GPU", [], remarks=[NO_GPU])]
    second = "cuda:0,cuda:1" if gpus > 1 else ""
    on_gpu = replace(scope, batches=scope.batches[::-1])
    found += device_tables("cuda:0", second, on_gpu, packages, main, runs)
    record = Record()
    precision = parity.compare(packages[main], torch.device("cuda:0"), record)
    precision.remarks += record.faults
    return [*found, precision]


def device_tables(
    device: str, two_workers: str, scope: KernelScope, packages: Mapping[str, Path], main: str, runs: KernelRuns
) -> list[Table]:
    """The kernel on one device; `two_workers`: the devices of two workers, empty where a second one is missing.

    The first of the scope's batches is used wherever the batch is not what is varied.
    """
    batch, most = scope.batches[0], scope.times[-1]
    by_package = {name: runs.run(name, device, batch, most) for name in packages}
    one = by_package[main]
    two = runs.run(main, two_workers, batch, most) if two_workers else None
    by_batch = {size: runs.run(main, device, size, most) for size in sorted(scope.batches)}
    found = [
        overlap(device, by_package),
        growth(device, [runs.run(main, device, batch, times) for times in scope.times]),
        workers(device, one, two),
        batches(device, by_batch),
    ]
    found[0].remarks.append(f"the next tables are of {main}")
    if main == GIVEN:
        with_workers = {device: (by_batch[max(scope.batches)], 1)} | ({two_workers: (two, 2)} if two else {})
        found.append(projection(main, with_workers))
    return found


def overlap(device: str, by_package: Mapping[str, KernelRun]) -> Table:
    """The kernel's wall time over that of its networks' forwards, and the shares of what hides behind nothing."""
    columns = ["package", "members", "studies", "model ms", "kernel s", "forwards s", "× forwards", "loaded ×"]
    columns += [*(f"% {name}" for name in SHARES.values()), "% rest", *CPU_COLUMNS, "peak MiB"]
    table = Table(f"overlap {device}", f"The kernel over its networks alone, {device}, one worker", columns)
    for package, run in by_package.items():
        forwards, loading = (run.clocks.get(name, 0.0) for name in ("forwards", "loading"))
        # Loading is paid once, however many studies there are: it says nothing of a run of hours.
        loaded = (run.total_s - loading) / forwards
        shares = [100 * run.clocks_exposed.get(name, 0.0) / run.total_s for name in SHARES]
        model_ms = 1e3 * forwards / run.studies
        whole = (run.total_s, forwards, run.total_s / forwards, loaded)
        cpu = [1e3 * run.clocks_cpu.get(name, 0.0) / run.studies for name in CPU_COLUMNS.values()]
        row = [package, run.members, run.studies, model_ms, *whole, *shares, 100 - sum(shares), *cpu, run.peak_mib]
        table.rows.append(row)
    table.remarks = [
        f"networks of {LEAST_MODEL_MS} ms a study and more hide the reading; loaded ×: without loading the networks",
        "shares of the time, what runs behind a forward not counted; wait: for a study to be read; cut: and normalise; "
        "rest: test-time augmentation, mm, files",
        "CPU ms a study: of the threads themselves, which other load changes less; reading has threads of its own",
    ]
    return table


def growth(device: str, runs: Sequence[KernelRun]) -> Table:
    """Seconds a study and peak memory at several numbers of studies."""
    columns = ["studies", "kernel s", "s a study", "CPU s a study", "peak MiB"]
    table = Table(f"growth {device}", f"More studies, {device}", columns)
    table.rows = [[run.studies, run.total_s, run.study_s, run.study_cpu_s, run.peak_mib] for run in runs]
    first, last = runs[0], runs[-1]
    # By CPU seconds: those of the wall depend more on other load.
    time_ratio, memory_ratio = last.study_cpu_s / first.study_cpu_s, last.peak_mib / first.peak_mib
    table.remarks = [
        f"{last.studies / first.studies:.3g} × the studies: CPU seconds a study × {time_ratio:.3g} "
        f"({'flat' if time_ratio <= FLAT_TIME else 'NOT flat'}), peak memory × {memory_ratio:.3g} "
        f"({'flat' if memory_ratio <= FLAT_MEMORY else 'NOT flat'}); CPU seconds are without loading networks, wall "
        "with it; where networks take several rounds, memory includes the studies kept between them, up to a bound"
    ]
    return table


def workers(device: str, one: KernelRun, two: KernelRun | None) -> Table:
    """One worker against two, whose submissions must be the same bytes.  Raises BenchError where they differ."""
    columns = ["workers", "studies", "seconds", "s a study", "× as fast", "CPU s", "peak MiB"]
    table = Table(f"workers {device}", f"One worker and two, one torch thread each, {device}", columns)
    if two is None:
        table.remarks = ["there is no second GPU: not measured"]
        return table
    if one.submission != two.submission:
        raise BenchError(f"two workers answer otherwise than one ({device}): the submissions differ")
    for number, run in ((1, one), (2, two)):
        faster = one.rounds_s / run.rounds_s
        table.rows.append([str(number), run.studies, run.rounds_s, run.study_s, faster, run.cpu_s, run.peak_mib])
    table.remarks = ["the two submissions are the same bytes"]
    return table


def batches(device: str, by_batch: Mapping[int, KernelRun]) -> Table:
    """Studies that go through a network together; by their number, the smallest first."""
    columns = ["studies at once", "studies", "seconds", "s a study", "× as fast", "largest difference"]
    columns += ["CPU s", "peak MiB"]
    table = Table(f"batches {device}", f"Studies at once, {device}", columns)
    alone = next(iter(by_batch.values()))
    for batch, run in by_batch.items():
        speed = [run.rounds_s, run.study_s, alone.rounds_s / run.rounds_s, run.largest_difference(alone)]
        table.rows.append([batch, run.studies, *speed, run.cpu_s, run.peak_mib])
    table.remarks = ["largest difference of a probability from that with the fewest studies at once"]
    return table


def projection(package: str, by_devices: Mapping[str, tuple[KernelRun, int]]) -> Table:
    """Hours for the hidden studies; by devices the run, and how many workers share the loading."""
    title = f"Projected for {HIDDEN_STUDIES} studies, {package}"
    table = Table("projection", title, ["devices", "once s", "s a study", "hours"])
    for devices, (run, count) in by_devices.items():
        loading = run.clocks.get("loading", 0.0) / count
        study_s, once_s = (run.rounds_s - loading) / run.studies, run.wall_s - run.rounds_s + loading
        table.rows.append([devices, once_s, study_s, (once_s + HIDDEN_STUDIES * study_s) / 3600])
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = speed_parser("kernel", __doc__)
    parser.add_argument("--weights", type=Path, help="a package; default: packages of untrained networks")
    parser.add_argument("--studies", type=int, help=f"so many are measured, once, twice …; default: {FULL.studies}")
    options = parser.parse_args(argv)
    scope = QUICK if options.quick else FULL
    scope = replace(scope, studies=options.studies or scope.studies)
    phantom = Options(train=0, test=scope.studies, seed=1, scale=scope.scale)
    errors = (BenchError, WeightsError, ExportError)
    return run_bench("bench", options, phantom, 1, partial(bench, weights=options.weights, scope=scope), errors)


if __name__ == "__main__":
    sys.exit(main())
