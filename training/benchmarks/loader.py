"""How fast crops come from the cache as training takes them, beside how fast a network trains on them.

The usual way beside it: a Dataset that decodes every sample, and torch's DataLoader around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pydicom
import torch
from torch.utils.data import DataLoader, Dataset

from training import networks
from training.data.cache.crop_cache import Cache, CachedView, CacheRequest, stored
from training.data.samples.batch import Batch
from training.data.samples.member_samples import MemberSamples
from training.data.tables import Tables
from training.fitting.device import device_of
from training.fitting.losses.registry import answer
from training.fitting.optimise import make_optimiser
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import MemberRecipe

MODEL_STEPS = 3
CONDITION = "neural_foraminal_narrowing"
JITTER_MM = {"sagittal_t1": 3.0}
PERCENTILES = (1, 99)
DATALOADER_BATCH = 16


@dataclass(frozen=True)
class Size:
    """A network to load for, and to train."""

    backbone: str
    size_px: int
    batch: int
    is_trained: bool
    """Whether its own rate is measured too."""

    def grader(self) -> MemberRecipe:
        """A foraminal grader of split_and_global with this backbone, of crops of this size."""
        members = load_named("split_and_global", "full").members()
        given = next(one for one in members if one.member.name.endswith("foraminal_resnet18")).model_dump()
        given["member"]["inputs"][0]["size_px"] = self.size_px
        given["backbone"] |= {"timm": self.backbone, "size_px": self.size_px, "pretrained": False}
        given["fitting"]["optimisation"]["batch_size"] = self.batch
        return MemberRecipe.model_validate(given)

    def request(self) -> CacheRequest:
        """The cache file that it needs."""
        member = self.grader().member
        return stored(member.unit, member.inputs[0])


@dataclass(frozen=True)
class Rate:
    """Stacks a second; of the CPU only where one process does it all."""

    wall: float
    cpu: float | None


class Loader:
    """The samples of a grader, from real crops repeated until no processor's cache holds their file."""

    def __init__(self, cache: Cache, tables: Tables, size: Size, file: Path, least_bytes: int, device: torch.device):
        self.entry, self.device = size.grader(), device
        view = cache.views[size.request()]
        times = -(-least_bytes // view.pixels.nbytes)
        pixels = np.lib.format.open_memmap(file, "w+", np.uint8, (times * len(view.pixels), *view.pixels.shape[1:]))
        for number in range(times):
            pixels[number * len(view.pixels) : (number + 1) * len(view.pixels)] = view.pixels
        pixels.flush()
        mapped = np.load(file, mmap_mode="r")  # (N, S, H, W)
        whole = CachedView(mapped, np.tile(view.present, times), np.tile(view.geometry, (times, 1, 1, 1)))
        labels = pd.concat([tables.labels] * times)
        labels.index = pd.Index([str(number) for number in range(len(labels))])
        studies = tuple(labels.index)
        of_labels = Tables(labels, {}, pd.DataFrame(), "")
        repeated = Cache(studies, {}, {size.request(): whole})
        self.samples = MemberSamples(repeated, of_labels, self.entry, studies, studies[:1], device, 0, JITTER_MM)
        self.stack_bytes, self.bytes = mapped.nbytes // len(mapped), mapped.nbytes

    def loading(self, rounds: int) -> tuple[Rate, Rate]:
        """From the mapped file to the batch's memory: the first time, and the best of some rounds by CPU."""
        order = np.random.default_rng(0).permutation(np.concatenate(self.samples.train_samples))
        size = self.entry.fitting.optimisation.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        rates = []
        for _ in range(1 + rounds):
            started, started_cpu = time.perf_counter(), time.process_time()
            for batch in batches:
                self.samples.read(batch)
            wall, cpu = time.perf_counter() - started, time.process_time() - started_cpu
            rates.append(Rate(len(order) / wall, len(order) / cpu))
        return rates[0], max(rates[1:], key=lambda rate: rate.cpu or 0)

    def augmenting(self, most_s: float) -> float:
        """Stacks a second as training gets them: loaded, sent, augmented and normalised on the device."""
        return self._rate(self.samples.training(1), lambda batch: None, most_s)

    def training(self, most_s: float) -> float:
        """Stacks a second of the network alone, on a batch that is on the device already."""
        batch, step = next(iter(self.samples.training(1))), self._step()
        step(batch)  # memory and plans of the first step are no part of the others
        return self._rate([batch] * MODEL_STEPS, step, most_s)

    def _step(self) -> Callable[[Batch], None]:
        """A step of the grader's training: forward, backward, and the optimiser's."""
        net = networks.for_member(self.entry, pretrained=False)
        net = net.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimiser, shared = make_optimiser(net, self.entry.fitting.optimisation), device_of(self.device)

        def step(batch: Batch) -> None:
            optimiser.zero_grad(set_to_none=True)
            with shared.autocast():
                loss, _ = answer(net, batch, self.entry.fitting)
            shared.scaler.scale(loss.mean).backward()
            shared.step(optimiser)

        return step

    def _rate(self, batches: Iterable[Batch], step: Callable[[Batch], None], most_s: float) -> float:
        wait(self.device)
        count, started = 0, time.perf_counter()
        for batch in batches:
            step(batch)
            count += len(batch.target)
            if time.perf_counter() - started > most_s:
                break
        wait(self.device)
        return count / (time.perf_counter() - started)


def wait(device: torch.device) -> None:
    """Until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


class PngStacks(Dataset[torch.Tensor]):
    """Stacks (S, H, W) kept as one PNG a slice."""

    def __init__(self, stacks: np.ndarray, folder: Path) -> None:
        folder.mkdir()
        self.files: list[list[str]] = []
        for number, stack in enumerate(stacks):
            self.files.append([str(folder / f"{number}_{place}.png") for place in range(len(stack))])
            for name, image in zip(self.files[-1], stack, strict=True):
                cv2.imwrite(name, image)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> torch.Tensor:
        images = [np.asarray(cv2.imread(name, cv2.IMREAD_GRAYSCALE)) for name in self.files[number]]
        return torch.from_numpy(np.stack(images))


@dataclass(frozen=True)
class Place:
    """The middle of a crop: a row of train_label_coordinates.csv."""

    folder: Path
    instance: int
    x: float
    y: float


class DicomStacks(Dataset[torch.Tensor]):
    """Stacks (S, H, W) cut from the DICOM files for every sample, as winners of the competition did."""

    def __init__(self, places: Sequence[Place], slices: int, size_px: int, size_mm: float) -> None:
        self.places, self.slices, self.size_px, self.size_mm = places, slices, size_px, size_mm

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> torch.Tensor:
        place = self.places[number]
        first = place.instance - self.slices // 2
        files = [place.folder / f"{first + step}.dcm" for step in range(self.slices)]
        nearest = place.folder / f"{place.instance}.dcm"
        return torch.from_numpy(np.stack([self._cut(file if file.is_file() else nearest, place) for file in files]))

    def _cut(self, file: Path, place: Place) -> np.ndarray:
        read = pydicom.dcmread(file)
        image = read.pixel_array.astype(np.float32)
        low, high = np.percentile(image, PERCENTILES)
        grey = (np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
        reach = round(self.size_mm / float(read.PixelSpacing[0]) / 2)
        top, left = max(round(place.y) - reach, 0), max(round(place.x) - reach, 0)
        return cv2.resize(grey[top : top + 2 * reach, left : left + 2 * reach], (self.size_px, self.size_px))


def places_of(data: Path, tables: Tables, condition: str) -> list[Place]:
    """The annotated points of a condition in files that exist and are named by their instance number."""
    rows = tables.coordinates[tables.coordinates["row"].str.contains(condition, regex=False)]
    columns = ["study_id", "series_id", "instance", "x", "y"]
    places = [
        Place(data / "train_images" / study / series, instance, x, y)
        for study, series, instance, x, y in rows[columns].itertuples(index=False, name=None)
    ]
    return [one for one in places if (one.folder / f"{one.instance}.dcm").is_file()]


def usual_datasets(
    data: Path, tables: Tables, cache: Cache, size: Size, stacks: int, folder: Path
) -> dict[str, Dataset[torch.Tensor]]:
    """Name of a usual way → its dataset of the same crops, so many stacks at most; PNG files go to a folder."""
    request = size.request()
    view = cache.views[request]
    present = np.flatnonzero(view.present)[:stacks]
    places = places_of(data, tables, CONDITION)[: len(present)]
    wanted = request.view
    return {
        "a PNG a slice": PngStacks(np.asarray(view.pixels[present]), folder / f"png{wanted.size_px}"),
        "DICOM, pydicom": DicomStacks(places, wanted.slices.count, wanted.size_px, wanted.size_mm or 0.0),
    }


def dataloader_rate(dataset: Dataset[torch.Tensor], workers: int) -> Rate:
    """Of an epoch through a DataLoader whose workers have run for an epoch already."""
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(dataset, DATALOADER_BATCH, shuffle=True, **options)
    if workers:
        for _ in loader:
            pass
    started, started_cpu = time.perf_counter(), time.process_time()
    count = sum(len(batch) for batch in loader)
    wall, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    return Rate(count / wall, None if workers else count / cpu)
