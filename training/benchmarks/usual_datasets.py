"""The usual way to train on the same crops: a Dataset that decodes every sample, and torch's DataLoader around it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import torch
from torch.utils.data import DataLoader, Dataset

from training.data.tables import Tables

BATCH = 16
WORKERS = (0, 2)
PERCENTILES = (1, 99)


class PngStacks(Dataset[torch.Tensor]):
    """Stacks kept as one PNG a slice."""

    def __init__(self, stacks: np.ndarray, folder: Path) -> None:
        folder.mkdir()
        self.files = [
            [str(folder / f"{number}_{place}.png") for place in range(len(stack))]
            for number, stack in enumerate(stacks)
        ]
        for names, stack in zip(self.files, stacks, strict=True):
            for name, image in zip(names, stack, strict=True):
                cv2.imwrite(name, image)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> torch.Tensor:
        images = [np.asarray(cv2.imread(name, cv2.IMREAD_GRAYSCALE)) for name in self.files[number]]
        return torch.from_numpy(np.stack(images))


@dataclass(frozen=True)
class Place:
    """Where a crop's middle lies: a row of train_label_coordinates.csv."""

    folder: Path
    instance: int
    x: float
    y: float


class DicomStacks(Dataset[torch.Tensor]):
    """Stacks cut from the DICOM files, every time that they are asked for: as winners of the competition did."""

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
    """Where the crops of a condition lie, of the files that are there and are named by their instance number."""
    rows = tables.coordinates[tables.coordinates["row"].str.contains(condition, regex=False)]
    columns = ["study_id", "series_id", "instance", "x", "y"]
    places = [
        Place(data / "train_images" / study / series, instance, x, y)
        for study, series, instance, x, y in rows[columns].itertuples(index=False, name=None)
    ]
    return [one for one in places if (one.folder / f"{one.instance}.dcm").is_file()]


@dataclass(frozen=True)
class Rate:
    """Stacks a second; of the CPU only where one process does it all."""

    wall: float
    cpu: float | None


def rate_of(dataset: Dataset[torch.Tensor], workers: int) -> Rate:
    """Of an epoch through a DataLoader whose workers have been running for an epoch already."""
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(dataset, BATCH, shuffle=True, **options)
    if workers:
        for _ in loader:
            pass
    started, started_cpu = time.perf_counter(), time.process_time()
    count = sum(len(batch) for batch in loader)
    wall, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    return Rate(count / wall, None if workers else count / cpu)
