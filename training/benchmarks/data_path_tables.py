"""The tables of the training loader: against the network, against the usual ways, and how busy it keeps a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.benchmarks.loader_rate import ENOUGH, Size
from training.benchmarks.table_text import Cell, Table
from training.benchmarks.usual_datasets import Rate

NO_GPU = "no GPU: not measured"
BUSY_ENOUGH = 0.9


@dataclass(frozen=True)
class Loaded:
    """Rates in stacks a second."""

    size: Size
    stack_bytes: int
    file_bytes: int
    stacks: int
    first: Rate
    best: Rate
    augmented: float
    model: float | None

    @property
    def name(self) -> str:
        """The network's."""
        return f"{self.size.backbone}, 5 × {self.size.size_px}²"


def loader(found: Sequence[Loaded], device: str) -> Table:
    """Rates by size of the crop; each stack is a grader's sample."""
    columns = ["network, crop", "KB a stack", "file GB", "first pass /s/core", "loaded /s/core", "GB/s"]
    columns += ["loaded /s, wall", "augmented /s", "model /s", "loader ÷ model", "augmented ÷ model"]
    table = Table("loader", f"Stacks from the mapped cache, one thread; augmentation and model: {device}", columns)
    for one in found:
        cpu, model = one.best.cpu or 0.0, one.model
        ratios = (one.best.wall / model, one.augmented / model) if model else (None, None)
        row: list[Cell] = [
            one.name,
            one.stack_bytes / 1e3,
            one.file_bytes / 1e9,
            one.first.cpu,
            cpu,
            cpu * one.stack_bytes / 1e9,
        ]
        table.rows.append([*row, one.best.wall, one.augmented, model, *ratios])
        verdict = f"{'≥' if cpu >= ENOUGH else '<'} {ENOUGH:,}"
        what = f"cache → batch, {one.stack_bytes / 1e3:.0f} KB stacks (5 × {one.size.size_px}² and margin)"
        table.figures.append((what, f"{cpu:,.0f} stacks/s/core, {cpu * one.stack_bytes / 1e9:.1f} GB/s ({verdict})"))
    for one in (one for one in found if one.model):
        what = f"loader over {one.name} ({device}); with augmentation there"
        model = one.model or 1.0
        table.figures.append((what, f"{one.best.wall / model:,.0f} ×; {one.augmented / model:.1f} ×"))
    largest_kb = max((one.best.cpu or 0) * one.stack_bytes for one in found) / ENOUGH / 1e3
    table.remarks = [
        "first pass: every page of the file is met for the first time; stacks have the margin that is kept for turning",
        f"at these GB/s {ENOUGH:,} stacks/s/core are met by stacks of up to {largest_kb:.0f} KB",
    ]
    return table


def usual(rates: Mapping[tuple[str, int], Rate], cache: Loaded) -> Table:
    """The same crops from the cache and through a DataLoader that decodes each sample."""
    columns = ["way", "workers", "stacks/s, wall", "stacks/s/core", "÷ model", "cache × as fast"]
    table = Table("usual", f"The same crops, {cache.stack_bytes / 1e3:.0f} KB a stack, by other ways", columns)
    over = (lambda rate: rate / cache.model) if cache.model else (lambda rate: None)
    table.rows.append(["mapped cache", 0, cache.best.wall, cache.best.cpu, over(cache.best.wall), 1.0])
    for (way, workers), rate in rates.items():
        table.rows.append([way, workers, rate.wall, rate.cpu, over(rate.wall), cache.best.wall / rate.wall])
    for way in dict.fromkeys(way for way, _ in rates):
        its = {workers: rate.wall for (name, workers), rate in rates.items() if name == way}
        rate_text = ", ".join(f"{rate:,.0f}" for rate in its.values())
        faster = ", ".join(f"{cache.best.wall / rate:,.0f}" for rate in its.values())
        workers_text = " and ".join(str(workers) for workers in its)
        what = f"the same crops, {way}, DataLoader with {workers_text} workers"
        table.figures.append((what, f"{rate_text} stacks/s; the cache is {faster} × as fast"))
    table.remarks = ["wall: whatever else the machine does slows all of them; workers have run for an epoch already"]
    return table


def gpu(share: float | None, name: str) -> Table:
    """How busy a GPU is; None where there is none."""
    if share is None:
        return Table("gpu", "GPU", [], remarks=[NO_GPU], figures=[("GPU busy in steady state", NO_GPU)])
    verdict = f"{'≥' if share >= BUSY_ENOUGH else '<'} {100 * BUSY_ENOUGH:.0f} %"
    table = Table("gpu", "GPU in steady state", ["network, crop", "busy %"], [[name, 100 * share]])
    table.figures = [(f"GPU busy in steady state, {name}", f"{100 * share:.0f} % ({verdict})")]
    return table
