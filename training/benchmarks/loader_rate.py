"""How fast crops come from the cache as training takes them, beside how fast a network trains on them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from training import networks
from training.benchmarks.usual_datasets import DicomStacks, PngStacks, Rate, places_of
from training.data.cache.crop_cache import Cache, CachedView, CacheRequest, stored
from training.data.samples.batch import Batch
from training.data.samples.member_samples import MemberSamples
from training.data.tables import Tables
from training.fitting.losses import answer
from training.fitting.optimise import make_optimiser
from training.recipe.load import load_named
from training.recipe.schema import MemberRecipe

# The measure of a loader that nothing waits for.
ENOUGH = 100_000
MODEL_STEPS, WARM_STEPS, BUSY_STEPS = 3, 10, 40
CONDITION = "neural_foraminal_narrowing"
JITTER_MM = {"sagittal_t1": 3.0}


@dataclass(frozen=True)
class Size:
    """A network to load for, and to train."""

    backbone: str
    size_px: int
    batch: int
    is_trained: bool
    """Whether its own rate is measured too."""


def grader(size: Size) -> MemberRecipe:
    """A foraminal grader of split_and_global with another backbone, of crops of another size."""
    members = load_named("split_and_global", "full").members()
    given = next(one for one in members if one.member.name.endswith("foraminal_resnet18")).model_dump()
    given["member"]["inputs"][0]["size_px"] = size.size_px
    given["backbone"] |= {"timm": size.backbone, "size_px": size.size_px, "pretrained": False}
    given["fitting"]["optimisation"]["batch_size"] = size.batch
    return MemberRecipe.model_validate(given)


@dataclass(frozen=True)
class Repeated:
    """Real crops, as often as it takes for a file that no processor's own memory holds."""

    samples: MemberSamples
    entry: MemberRecipe
    stack_bytes: int
    bytes: int

    @property
    def stacks(self) -> int:
        """How many stacks there are to load."""
        return len(self.samples.train_samples)


def repeated(cache: Cache, tables: Tables, size: Size, file: Path, least: int, device: torch.device) -> Repeated:
    """The samples of a grader on a cache that was repeated to so many bytes at least."""
    entry = grader(size)
    request = stored(entry.member.unit, entry.member.inputs[0])
    view = cache.views[request]
    times = -(-least // view.pixels.nbytes)
    pixels = np.lib.format.open_memmap(file, "w+", np.uint8, (times * len(view.pixels), *view.pixels.shape[1:]))
    for number in range(times):
        pixels[number * len(view.pixels) : (number + 1) * len(view.pixels)] = view.pixels
    pixels.flush()
    mapped = np.load(file, mmap_mode="r")
    views = {request: CachedView(mapped, np.tile(view.present, times), np.tile(view.geometry, (times, 1, 1, 1)))}
    labels = pd.concat([tables.labels] * times)
    labels.index = pd.Index([str(number) for number in range(len(labels))])
    studies = tuple(labels.index)
    whole = Tables(labels, {}, pd.DataFrame(), "")
    samples = MemberSamples(Cache(studies, {}, views), whole, entry, studies, studies[:1], device, 0, JITTER_MM)
    return Repeated(samples, entry, mapped.nbytes // len(mapped), mapped.nbytes)


def loading(given: Repeated, rounds: int) -> list[Rate]:
    """Stacks a second from the mapped file to the batch's memory: the first time, and in the best of some rounds."""
    order = np.random.default_rng(0).permutation(np.concatenate(given.samples.train_samples))
    size = given.entry.fitting.optimisation.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    rates = []
    for _ in range(1 + rounds):
        started, started_cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            given.samples.read(batch)
        wall, cpu = time.perf_counter() - started, time.process_time() - started_cpu
        rates.append(Rate(len(order) / wall, len(order) / cpu))
    return [rates[0], max(rates[1:], key=lambda rate: rate.cpu or 0)]


def augmenting(given: Repeated, most_s: float, device: torch.device) -> float:
    """Stacks a second as training gets them: loaded, sent, augmented and normalised on the device."""
    count, started = 0, time.perf_counter()
    for batch in given.samples.training(1):
        count += len(batch.target)
        if time.perf_counter() - started > most_s:
            break
    _wait(device)
    return count / (time.perf_counter() - started)


def trainer(entry: MemberRecipe, device: torch.device) -> Callable[[Batch], None]:
    """A step of the grader's training: forward, backward, and the optimiser's."""
    net = networks.for_member(entry, pretrained=False).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = make_optimiser(net, entry.fitting.optimisation)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def step(batch: Batch) -> None:
        optimiser.zero_grad(set_to_none=True)
        half: AbstractContextManager[Any] = nullcontext()
        if device.type == "cuda":
            half = torch.autocast("cuda", torch.float16)
        with half:
            loss, _ = answer(net, batch, entry.fitting)
        scaler.scale(loss.mean).backward()
        scaler.step(optimiser)
        scaler.update()

    return step


def training(given: Repeated, device: torch.device, most_s: float) -> float:
    """Stacks a second of the model alone, on a batch that is there already."""
    batch = next(iter(given.samples.training(1)))
    step = trainer(given.entry, device)
    step(batch)  # memory and plans of the first step are no part of the others
    _wait(device)
    count, started = 0, time.perf_counter()
    for _ in range(MODEL_STEPS):
        step(batch)
        _wait(device)
        count += len(batch.target)
        if time.perf_counter() - started > most_s:
            break
    return count / (time.perf_counter() - started)


def busy_share(given: Repeated, device: torch.device) -> float:
    """Share of the time that a GPU computes or copies while a network is trained from the cache."""
    step = trainer(given.entry, device)
    batches = (batch for epoch in itertools.count(1) for batch in given.samples.training(epoch))
    for _ in range(WARM_STEPS):
        step(next(batches))
    _wait(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        started = time.perf_counter()
        for _ in range(BUSY_STEPS):
            step(next(batches))
        _wait(device)
        wall_s = time.perf_counter() - started
    return 1e-6 * sum(event.self_device_time_total for event in profiler.key_averages()) / wall_s


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def usual(data: Path, tables: Tables, view: CachedView, entry: MemberRecipe, stacks: int, folder: Path) -> Any:
    """Way → its dataset of the same crops."""
    request = stored(entry.member.unit, entry.member.inputs[0]).view
    there = np.flatnonzero(view.present)[:stacks]
    places = places_of(data, tables, CONDITION)[: len(there)]
    slices, size_px, size_mm = request.slices.count, request.size_px, request.size_mm or 0.0
    return {
        "a PNG a slice": PngStacks(np.asarray(view.pixels[there]), folder / f"png{size_px}"),
        "DICOM, pydicom": DicomStacks(places, slices, size_px, size_mm),
    }


def requests_of(sizes: Sequence[Size]) -> list[CacheRequest]:
    """The cache files that these networks need."""
    entries = [grader(size) for size in sizes]
    return [stored(one.member.unit, one.member.inputs[0]) for one in entries]
