"""The whole kernel, measured: against its models alone, with more studies, with two lanes, with batches, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.benchmarks.kernel_runs import BenchError, FinishedRun, RunOptions
from training.benchmarks.table_text import Table

# Flat is what grows no further than this while studies come in; other load alone changes seconds a little.
FLAT_TIME, FLAT_MEMORY = 1.15, 1.05
LEAST_MODEL_MS = 150
HIDDEN_STUDIES = 722
# Column → clock of kernel_child.
CPU_COLUMNS = {"model CPU ms": "forwards", "cut CPU ms": "cutting", "read CPU ms": "reading"}

Results = Mapping[RunOptions, FinishedRun]


@dataclass(frozen=True)
class OverheadPlan:
    """What is measured on one device."""

    device: str
    packages: Sequence[str]
    """The kernel's time is held against the models' with each; all else is measured with the `main` one."""
    main: str
    times: Sequence[int]
    batches: Sequence[int]

    @property
    def two_lanes(self) -> str:
        """The device's second lane is on the next GPU, where there is one."""
        return f"{self.device},{self.device}" if self.device == "cpu" else f"{self.device},cuda:1"

    def order(
        self, package: str = "", times: int | None = None, batch: int | None = None, devices: str = ""
    ) -> RunOptions:
        """The main run, or one that differs from it."""
        return RunOptions(
            package or self.main,
            devices or self.device,
            self.batches[0] if batch is None else batch,
            self.times[-1] if times is None else times,
        )

    def orders(self, lanes: int = 2) -> list[RunOptions]:
        """All runs."""
        return [
            *(self.order(package) for package in self.packages),
            *(self.order(times=times) for times in self.times),
            *(self.order(batch=batch) for batch in self.batches),
            *([self.order(devices=self.two_lanes)] if lanes > 1 else []),
        ]


def tables(plan: OverheadPlan, results: Results) -> list[Table]:
    """Everything that was measured on a device."""
    return [
        overlap(plan, results),
        growth(plan, results),
        lanes(plan, results),
        batches(plan, results),
        memory(plan, results),
    ]


def overlap(plan: OverheadPlan, results: Results) -> Table:
    """The kernel's wall time over that of its models' forwards, and what the rest of it is."""
    columns = ["package", "members", "studies", "model ms", "kernel s", "forwards s", "× forwards", "loaded ×"]
    columns += [*(f"% {name}" for name in ("forward", "wait", "cut", "load", "rest")), *CPU_COLUMNS]
    table = Table(f"overlap {plan.device}", f"The kernel over its models alone, {plan.device}, one lane", columns)
    for package in plan.packages:
        run = results[plan.order(package)]
        clock = [run.clocks.get(name, 0.0) for name in ("forwards", "waiting", "cutting", "loading")]
        forwards, total = clock[0], run.total_s
        # What is paid once, however many studies there are, says nothing of a run of hours.
        loaded = (total - clock[3]) / forwards
        shares = [100 * seconds / total for seconds in clock]
        model_ms = 1e3 * forwards / run.studies
        whole = (total, forwards, total / forwards, loaded)
        cpu = [1e3 * run.clocks_cpu.get(name, 0.0) / run.studies for name in CPU_COLUMNS.values()]
        row = [package, run.members, run.studies, model_ms, *whole, *shares, 100 - sum(shares), *cpu]
        table.rows.append(row)
        members = f"{run.members} member{'s' if run.members > 1 else ''}"
        what = f"kernel over its forwards alone, {members} of {model_ms:.0f} ms a study ({plan.device})"
        table.figures.append((what, f"{loaded:.2f} ×; with loading, {run.studies} studies: {total / forwards:.2f} ×"))
    table.remarks = [
        f"models of {LEAST_MODEL_MS} ms a study and more hide the reading; loaded ×: without the loading of members",
        "wait: for a study to be read; cut: and normalise; rest: test-time augmentation, mm, files",
        "CPU ms a study: of the threads themselves, which other load on the machine changes less; reading is beside",
    ]
    return table


def growth(plan: OverheadPlan, results: Results) -> Table:
    """Seconds a study and peak memory at several numbers of studies."""
    columns = ["studies", "kernel s", "s a study", "CPU s a study", "peak MiB"]
    table = Table(f"growth {plan.device}", f"More studies, {plan.device}, {plan.main}", columns)
    runs = [results[plan.order(times=times)] for times in plan.times]
    table.rows = [[run.studies, run.total_s, run.study_s, run.study_cpu_s, run.peak_mib] for run in runs]
    first, last = runs[0], runs[-1]
    # By CPU seconds: those of the wall say more of what else the machine does.
    time, memory = last.study_cpu_s / first.study_cpu_s, last.peak_mib / first.peak_mib
    table.remarks = [
        f"{last.studies / first.studies:.3g} × the studies: CPU seconds a study × {time:.3g} "
        f"({'flat' if time <= FLAT_TIME else 'NOT flat'}), peak memory × {memory:.3g} "
        f"({'flat' if memory <= FLAT_MEMORY else 'NOT flat'}); CPU seconds are without loading members, wall with it"
    ]
    counts = ", ".join(str(run.studies) for run in runs)
    seconds, mib = (
        ", ".join(f"{run.study_cpu_s:.2f}" for run in runs),
        ", ".join(f"{run.peak_mib:.0f}" for run in runs),
    )
    table.figures = [
        (f"CPU seconds a study at {counts} studies ({plan.device})", seconds),
        (f"peak memory at {counts} studies ({plan.device})", f"{mib} MiB"),
    ]
    return table


def lanes(plan: OverheadPlan, results: Results) -> Table:
    """One lane against two, which must answer the same to the last bit."""
    columns = ["devices", "studies", "seconds", "s a study", "× as fast", "CPU s", "peak MiB"]
    table = Table(f"lanes {plan.device}", f"One lane and two, one torch thread each, {plan.main}", columns)
    one, two = results[plan.order()], results.get(plan.order(devices=plan.two_lanes))
    if two is None:
        table.remarks = [f"{plan.two_lanes} is not there: not measured"]
        return table
    if one.submission != two.submission:
        raise BenchError(f"{plan.two_lanes} answers otherwise than {plan.device}: the submissions differ")
    for devices, run in ((plan.device, one), (plan.two_lanes, two)):
        faster = one.rounds_s / run.rounds_s
        table.rows.append([devices, run.studies, run.rounds_s, run.study_s, faster, run.cpu_s, run.peak_mib])
    table.remarks = ["the two submissions are the same bytes"]
    figure = f"{one.rounds_s:.1f} s against {two.rounds_s:.1f} s: {one.rounds_s / two.rounds_s:.2f} ×, the same bytes"
    table.figures = [(f"one lane against two ({plan.two_lanes}), {one.studies} studies", figure)]
    return table


def batches(plan: OverheadPlan, results: Results) -> Table:
    """Studies that go through a network together."""
    columns = ["studies at once", "studies", "seconds", "s a study", "× as fast", "largest difference"]
    columns += ["CPU s", "peak MiB"]
    table = Table(f"batches {plan.device}", f"Studies at once, {plan.device}, {plan.main}", columns)
    alone, worst = results[plan.order(batch=min(plan.batches))], 0.0
    speeds: list[float] = []
    for batch in sorted(plan.batches):
        run = results[plan.order(batch=batch)]
        difference = float(np.abs(run.answers - alone.answers).max())
        speeds.append(alone.rounds_s / run.rounds_s)
        row = [batch, run.studies, run.rounds_s, run.study_s, speeds[-1], difference, run.cpu_s, run.peak_mib]
        table.rows.append(row)
        worst = max(worst, difference)
    fast = ", ".join(f"{speed:.2f}" for speed in speeds)
    what = ", ".join(str(batch) for batch in sorted(plan.batches))
    table.remarks = ["largest difference of a probability from that with the fewest studies at once"]
    table.figures = [
        (f"speed at {what} studies at once ({plan.device})", f"{fast} ×; probabilities differ by {worst:.0e} at most")
    ]
    return table


def memory(plan: OverheadPlan, results: Results) -> Table:
    """Peak memory by package."""
    columns = ["package", "members", "weights MB", "peak MiB", "CPU s", "start s"]
    table = Table(f"memory {plan.device}", f"Memory of the kernel's process, {plan.device}", columns)
    for package in plan.packages:
        run = results[plan.order(package)]
        start = run.wall_s - run.total_s
        table.rows.append([package, run.members, run.weights_mb, run.peak_mib, run.cpu_s, start])
    table.remarks = ["start: until everything is imported"]
    return table


def projection(plan: OverheadPlan, results: Results) -> Table:
    """Hours for the hidden studies, with one lane and with as many as were measured."""
    title = f"Projected for {HIDDEN_STUDIES} studies, {plan.main}"
    table = Table(f"projection {plan.device}", title, ["devices", "once s", "s a study", "hours"])
    for order in (plan.order(batch=max(plan.batches)), plan.order(devices=plan.two_lanes)):
        if order in results:
            run = results[order]
            loading = run.clocks.get("loading", 0.0) / order.lanes
            study_s = (run.rounds_s - loading) / run.studies
            once_s = run.wall_s - run.rounds_s + loading
            table.rows.append([order.devices, once_s, study_s, (once_s + HIDDEN_STUDIES * study_s) / 3600])
    table.figures = [(f"{title} ({row[0]})", f"{row[3]:.2f} hours") for row in table.rows]
    return table
