"""Optimiser steps a second of two networks of the full profile, with mixed precision, by the kit's own loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from tqdm import tqdm

from kernels.lumbar.inputs.normalise import normalise
from training.benchmarks.loader import wait
from training.benchmarks.tables import Cell, Record
from training.data.samples.batch import Batch, Origin, send
from training.fitting.device import device_of
from training.fitting.fit_state import FitState
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import MemberRecipe

from .parts import Setting

WARM_UP, STEPS, SMALL_STEPS = 5, 40, 2
SMALL_BATCH = 4
# Recipe, backbone or architecture of the network, batch: the published ones.
CHOSEN = (
    ("view_fusion", "convnext_tiny", 16),
    ("split_and_global", "deeplab_heatmap", 16),
)


class Noise:
    """training.data.samples.batch.Samples of noise, that go from pinned memory to the device as real ones do."""

    def __init__(self, recipe: MemberRecipe, device: torch.device, batch: int, steps: int) -> None:
        self.member, self.device, self.batch = recipe.member, device, batch
        self.steps_per_epoch = steps
        shapes = [(batch, one.slices.count, one.size_px, one.size_px) for one in self.member.inputs]
        is_gpu = device.type == "cuda"
        self.pixels = [torch.empty(shape, dtype=torch.uint8, pin_memory=is_gpu).random_() for shape in shapes]

    def training(self, epoch: int) -> Iterator[Batch]:
        """The same noise, sent anew for each step."""
        for _ in range(self.steps_per_epoch):
            yield self._batch()

    def validation(self) -> Iterator[Batch]:
        """One batch."""
        yield self._batch()

    def _batch(self) -> Batch:
        pairs = zip(self.pixels, self.member.inputs, strict=True)
        views = tuple(normalise(send(view, self.device), request.normalisation) for view, request in pairs)
        targets, request = len(self.member.targets), self.member.inputs[0]
        present = torch.ones(self.batch, len(self.member.inputs), device=self.device)
        if self.member.role == "grader":
            grades = torch.randint(0, 3, (self.batch, targets), device=self.device)
            groups = torch.zeros(targets, dtype=torch.int64, device=self.device)
            return Batch(views, present, grades, origin=Origin(torch.arange(self.batch, device=self.device), groups))
        sizes = torch.tensor([request.slices.count, request.size_px, request.size_px], device=self.device)
        points = torch.rand(self.batch, targets, 3, device=self.device) * sizes
        return Batch(views, present, points)


def measure(setting: Setting, record: Record) -> None:
    """Per network an epoch to warm up, one on the clock, and on a GPU one in the profiler."""
    columns = ["network", "size_px", "batch", "steps a second", "images a second", "busy %", "peak MiB", "loss"]
    table = record.table("training steps, mixed precision", columns)
    for recipe, name, batch in CHOSEN:
        if setting.is_late:
            return
        entry = find(recipe, name, setting)
        try:
            table.rows.append(_row(entry, min(batch, SMALL_BATCH) if setting.small else batch, setting))
        except Exception as error:  # noqa: BLE001 - an error of one network must not cost the other
            record.check(False, f"{entry.member.name}: {type(error).__name__}: {str(error).strip()[:300]}")
        record.save()


def find(recipe: str, name: str, setting: Setting) -> MemberRecipe:
    """The first network of a recipe with this backbone or architecture; else its first grader."""
    members = load_named(recipe, "smoke" if setting.small else "full").members()
    named = [one for one in members if name in (one.backbone.timm if one.backbone else "", one.fitting.network.name)]
    return (named or [one for one in members if one.member.role == "grader"])[0]


def _row(entry: MemberRecipe, batch: int, setting: Setting) -> list[Cell]:
    device = torch.device(setting.device)
    shared = device_of(device, entry.fitting.optimisation.precision)
    samples = Noise(entry, shared.device, batch, SMALL_STEPS if setting.small else WARM_UP)
    run = FitState(entry, samples, shared, pretrained=False)
    memory, busy = None, None
    with tqdm(disable=True) as bar:
        run.epoch(1, 0, bar, lambda _: None)
        samples.steps_per_epoch = SMALL_STEPS if setting.small else STEPS
        wait(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        run.epoch(2, 0, bar, lambda _: None)
        seconds = time.perf_counter() - started
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated() / 2**20
            busy = 100 * busy_share(lambda: run.epoch(3, 0, bar, lambda _: None))
    rate = samples.steps_per_epoch / seconds
    size_px, loss = entry.member.inputs[0].size_px, run.history[-1].train_loss
    return [entry.member.name, size_px, batch, rate, rate * batch, busy, memory, loss]


def busy_share(work: Callable[[], object]) -> float:
    """Share of the time of some work in which the GPU computes or copies, by torch's profiler."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        wall_s = time.perf_counter() - started
    return 1e-6 * sum(event.self_device_time_total for event in profiler.key_averages()) / wall_s
