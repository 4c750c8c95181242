"""How fast samples are cut from the stack cache as training takes them, beside how fast a network trains on them.

The usual way beside it: a Dataset that decodes every sample, and torch's DataLoader around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pydicom
import torch
from torch.utils.data import DataLoader, Dataset

from kernels.lumbar.specs import SeriesKind
from kernels.profiles import Profile
from training import networks
from training.data.cache.stack_cache import StackCache
from training.data.samples.batch import Batch
from training.data.samples.member_samples import MemberSamples
from training.data.tables import Tables
from training.fitting.batch_parts import at_least_two
from training.fitting.device import device_of
from training.fitting.fit_state import channels_last
from training.fitting.losses import answer
from training.fitting.optimise import make_optimiser
from training.recipe_schema.fitting import Augmentation
from training.recipe_schema.load import load_named, names_of
from training.recipe_schema.schema import MemberRecipe

MODEL_STEPS = 2
CONDITION = "neural_foraminal_narrowing"
JITTER_MM = dict.fromkeys(get_args(SeriesKind), 3.0)
CHANGES = Augmentation(rotate_deg=15, shear_deg=5, scale=0.1, jitter_mm=3.0, slice_jitter=1)
PERCENTILES = (1, 99)
DATALOADER_BATCH = 16
BATCH = 16


@dataclass(frozen=True)
class Crops:
    """Stacks to be cut: of one foramen, or of whole images around the middle slice."""

    size_px: int
    slices: int
    is_whole: bool = False

    @property
    def name(self) -> str:
        """Such as 5 × 128²."""
        return f"{self.slices} × {self.size_px}²{', whole images' if self.is_whole else ''}"

    def grader(self) -> MemberRecipe:
        """A foraminal grader of split_and_global that sees them."""
        members = load_named("split_and_global", "full").members()
        given = next(one for one in members if one.member.name.endswith("foraminal_resnet18"))
        slices = {"by": "middle", "count": self.slices} if self.is_whole else {"by": "landmark", "count": self.slices}
        request = {"series": "sagittal_t1", "slices": slices, "size_px": self.size_px}
        if not self.is_whole:
            request |= {"centre": ["neural_foraminal_narrowing"], "size_mm": 50, "mirror_right": True}
        changed = given.model_dump()
        changed["member"]["inputs"] = [request]
        changed["fitting"]["augmentation"] = CHANGES.model_dump()
        changed["fitting"]["optimisation"]["batch_size"] = BATCH
        return MemberRecipe.model_validate(changed)


@dataclass(frozen=True)
class Rate:
    """Stacks a second; of the CPU only where one process does it all."""

    wall: float
    cpu: float | None


class Loader:
    """The samples of a network, and its training."""

    def __init__(self, cache: StackCache, tables: Tables, entry: MemberRecipe, device: torch.device) -> None:
        self.entry, self.device = entry, device
        studies = cache.studies
        self.samples = MemberSamples(cache, tables, entry, studies, studies[:1], device, 0, JITTER_MM)
        inputs = entry.member.inputs
        self.sample_bytes = sum(request.slices.count * request.size_px**2 for request in inputs)

    def cutting(self, most_s: float, is_changed: bool = True) -> Rate:
        """Samples a second from the mapped stacks to a batch's memory, in this thread, the median batch by CPU."""
        order = np.random.default_rng(0).permutation(np.concatenate(self.samples.train_samples))
        size, generator = self.entry.fitting.optimisation.batch_size, torch.Generator().manual_seed(0)
        rates: list[Rate] = []
        begun, first = time.perf_counter(), 0
        while not rates or time.perf_counter() - begun < most_s:
            batch = order[first : first + size]
            first = (first + size) % len(order)
            started, started_cpu = time.perf_counter(), time.process_time()
            self.samples.cutter.cut(batch, self.samples.cutter.draw(len(batch), generator) if is_changed else None)
            wall, cpu = time.perf_counter() - started, time.process_time() - started_cpu
            rates.append(Rate(len(batch) / wall, len(batch) / cpu))
        return sorted(rates, key=lambda rate: rate.cpu or 0)[len(rates) // 2]

    def plain(self, count: int) -> np.ndarray:
        """(N, S, H, W) uint8 first views of so many samples, as the kernel cuts them."""
        some = np.concatenate(self.samples.train_samples)[:count]
        return self.samples.cutter.cut(some, None).views[0].numpy()

    def training(self, most_s: float) -> float:
        """Samples a second of the network alone, on a batch that is on the device already."""
        batch, step = next(iter(self.samples.training(1))), self._step()
        step(batch)  # memory and plans of the first step are no part of the others
        return self._rate([batch] * MODEL_STEPS, step, most_s)

    def _step(self) -> Callable[[Batch], None]:
        """A step of the grader's training: forward, backward, and the optimiser's."""
        net = networks.for_member(self.entry, pretrained=False)
        net = channels_last(net.to(self.device)).train()
        optimiser, shared = make_optimiser(net, self.entry.fitting.optimisation), device_of(self.device)

        def step(batch: Batch) -> None:
            optimiser.zero_grad(set_to_none=True)
            with shared.autocast():
                loss, _ = answer(net, at_least_two(batch), self.entry.fitting)
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


def kinds_of_views(profile: Profile) -> list[MemberRecipe]:
    """The first network of all recipes for each kind of view: of a series, as crops, windows or whole stacks, in one
    view or several."""
    found: dict[tuple[object, ...], MemberRecipe] = {}
    for name in names_of([]):
        for entry in load_named(name, profile).members():
            first = entry.member.inputs[0]
            kind = first.series, bool(first.centre), first.slices.by == "all", len(entry.member.inputs) > 1
            found.setdefault(kind, entry)
    return list(found.values())


def with_batch(entry: MemberRecipe, batch: int) -> MemberRecipe:
    """The network with batches of another size, not accumulated."""
    return entry.with_optimisation(batch_size=batch, accumulate=1)


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
    data: Path, tables: Tables, loader: Loader, stacks: int, folder: Path
) -> dict[str, Dataset[torch.Tensor]]:
    """Name of a usual way → its dataset of the same crops, so many stacks at most; PNG files go to a folder."""
    wanted = loader.entry.member.inputs[0]
    crops = loader.plain(stacks)
    places = places_of(data, tables, CONDITION)[: len(crops)]
    return {
        "a PNG a slice": PngStacks(crops, folder / f"png{wanted.size_px}"),
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
