"""The design's numbers, each as a ratio measured side by side in one run.

    python -m training.evaluation.bench [--data DIR] [--studies N]

Without --data a phantom of full-size images is made for the run.  CPU seconds are the best of several rounds, so that
other load on the machine changes little.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pydicom
import torch

from kernels.lumbar.budget import Budget
from kernels.lumbar.competition import read_series_table
from kernels.lumbar.dicom import read_study
from kernels.lumbar.labels import UNITS
from kernels.lumbar.predictor import read_ahead
from kernels.lumbar.specs import ViewRequest
from kernels.lumbar.views import cut
from training.evaluation.truth import read_landmarks
from training.phantom.dataset import Options, make_dataset

ROUNDS = 3
# A stand-in for a model that costs 150 ms a study, as the design's overlap figure assumes.
MODEL_S = 0.150
CROPS: tuple[tuple[str, dict[str, object]], ...] = (
    ("level", {"series": "sagittal_t2", "centre": ["spinal_canal_stenosis"], "slices": {"by": "middle", "count": 5}}),
    (
        "level_side",
        {"series": "sagittal_t1", "centre": ["neural_foraminal_narrowing"], "slices": {"by": "landmark", "count": 5}},
    ),
    (
        "level_side",
        {"series": "axial_t2", "centre": ["subarticular_stenosis"], "slices": {"by": "landmark", "count": 5}},
    ),
)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of the best of several rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def our_path(images: Path, study: str, series: list[tuple[str, str]], landmarks: dict[str, np.ndarray]) -> int:
    """One study's decode, geometry, window and 25 crops of 5 slices, as the kernel does them."""
    read = read_study(images / study, study, series)
    made = 0
    for kind, request in CROPS:
        view = ViewRequest.model_validate(request | {"size_mm": 50, "size_px": 128})
        made += sum(cut(read, view, unit, landmarks) is not None for unit in UNITS[kind])
    return made


def usual_path(images: Path, study: str, series: list[tuple[str, str]]) -> int:
    """What the winners' code does: pydicom, np.percentile over the volume, float scaling, fixed crops, cv2.resize."""
    made = 0
    for identifier, kind in series:
        files = sorted((images / study / identifier).iterdir())
        slices = [pydicom.dcmread(file) for file in files]
        slices.sort(key=lambda one: float(one.ImagePositionPatient[2 if kind == "axial_t2" else 0]))
        volume = np.stack([one.pixel_array for one in slices if one.Rows == slices[0].Rows]).astype(np.float32)
        low, high = np.percentile(volume, (1, 99))
        scaled = (np.clip(volume, low, high) - low) / max(high - low, 1e-6) * 255
        for _ in range(5 if kind == "sagittal_t2" else 10):
            half = scaled.shape[1] // 6
            for image in scaled[: min(5, len(scaled))]:
                crop = image[image.shape[0] // 2 - half : image.shape[0] // 2 + half, :][:, : 2 * half]
                cv2.resize(crop, (128, 128), interpolation=cv2.INTER_CUBIC)
            made += 1
    return made


def bare_reading(images: Path, study: str, series: list[tuple[str, str]]) -> int:
    """Reading the bytes of every file and nothing else: below this no path can come."""
    return sum(len(file.read_bytes()) for one, _ in series for file in (images / study / one).iterdir())


def bench_reading(data: Path, studies: Sequence[str]) -> list[str]:
    """CPU of our path, of the usual one and of bare reading, per study."""
    table = read_series_table(data / "test_series_descriptions.csv").series
    truth, images = read_landmarks(data, "test"), data / "test_images"
    ours = cpu_seconds(lambda: [our_path(images, one, table[one], truth[one]) for one in studies]) / len(studies)
    usual = cpu_seconds(lambda: [usual_path(images, one, table[one]) for one in studies]) / len(studies)
    bare = cpu_seconds(lambda: [bare_reading(images, one, table[one]) for one in studies]) / len(studies)
    return [
        f"decode + geometry + window + 25 crops, ours     {ours * 1e3:8.1f} ms CPU a study",
        f"the usual way: pydicom, np.percentile, crops    {usual * 1e3:8.1f} ms CPU a study {usual / ours:5.1f} × ours",
        f"reading the bytes and nothing else              {bare * 1e3:8.1f} ms CPU a study",
    ]


def bench_overlap(data: Path, studies: Sequence[str]) -> list[str]:
    """Wall time with reading beside a model of 150 ms a study, over that of the model alone; and memory."""
    table = read_series_table(data / "test_series_descriptions.csv").series
    lines = []
    for times in (1, 2, 4):
        queue = list(studies) * times
        started = time.monotonic()
        for _ in read_ahead(data / "test_images", table, queue, Budget(float("inf"))):
            time.sleep(MODEL_S)
        wall = time.monotonic() - started
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        lines.append(
            f"{len(queue):4} studies beside a model of {MODEL_S * 1e3:.0f} ms    "
            f"{wall / (MODEL_S * len(queue)):8.3f} × the model alone, peak memory {memory:.0f} MiB"
        )
    return lines


def bench_loader() -> list[str]:
    """Stacks a second from a memory-mapped cache, against PNG files, one thread."""
    from training.data.cache import CachedView
    from training.data.samples import take

    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "crops.npy"
        np.save(path, generator.integers(0, 255, (4000, 5, 64, 64), np.uint8))
        pixels = np.load(path, mmap_mode="r")
        view = CachedView(pixels, np.ones(4000, bool), np.zeros((4000, 5, 3, 3)))
        order = generator.permutation(4000)
        batches = [order[start : start + 64] for start in range(0, 4000, 64)]
        buffer = torch.empty((64, 5, 64, 64), dtype=torch.uint8)
        rate = 4000 / cpu_seconds(lambda: [take(view, batch, buffer[: len(batch)]) for batch in batches])
        for number, stack in enumerate(pixels[:100]):
            cv2.imwrite(str(Path(folder) / f"{number}.png"), stack.reshape(-1, 64))
        read = [str(Path(folder) / f"{number}.png") for number in range(100)]
        slow = 100 / cpu_seconds(lambda: [cv2.imread(name, cv2.IMREAD_GRAYSCALE) for name in read])
    return [
        f"loader, stacks of 5 × 64² from the cache        {rate:8.0f} stacks a CPU second",
        f"loader, one PNG a stack                         {slow:8.0f} stacks a CPU second   cache {rate / slow:.0f} ×",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="training.evaluation.bench", description=__doc__)
    parser.add_argument("--data", type=Path, help="a phantom data set; default: a small one of full-size images")
    parser.add_argument("--studies", type=int, default=6)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data
        if data is None:
            data = Path(scratch) / "phantom"
            make_dataset(data, Options(train=1, test=options.studies, seed=1, scale=1.0))
        studies = sorted(path.name for path in (data / "test_images").iterdir())[: options.studies]
        for lines in (bench_reading(data, studies), bench_overlap(data, studies), bench_loader()):
            print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
