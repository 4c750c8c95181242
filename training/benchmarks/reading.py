"""From DICOM files to crops: our path, the usual one, and the limits that no path can pass; and the training loader.

CPU seconds are the best of several rounds in which all take turns, so that other load on the machine changes little.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pydicom
import torch
from tqdm import tqdm

from kernels.lumbar.answers.spine_shape import stack_centres
from kernels.lumbar.dicom.header import parse, scan
from kernels.lumbar.dicom.pixels import TIFF_TAIL, decode_fast, read_file
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.inputs.views import cut
from kernels.lumbar.labels import ROWS, UNITS, group_of
from kernels.lumbar.specs import ViewRequest
from training.benchmarks.table_text import Table
from training.benchmarks.untrained_packages import Studies
from training.data.cache.crop_cache import CachedView
from training.data.samples.member_samples import take
from training.evaluation.truth import TruthError, read_landmarks

ROUNDS = 3
STACKS, PNGS, STACK = 4000, 100, (5, 64, 64)
SERIES_OF = {"spinal": "sagittal_t2", "foraminal": "sagittal_t1", "subarticular": "axial_t2"}
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
Series = Sequence[tuple[str, str]]


def best_cpu_s(works: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """CPU seconds of each work in its best round."""
    best = dict.fromkeys(works, float("inf"))
    for name in tqdm([*works] * rounds, unit="round", desc="reading", leave=False):
        started = time.process_time()
        works[name]()
        best[name] = min(best[name], time.process_time() - started)
    return best


def our_path(images: Path, study: str, series: Series, landmarks: Mapping[str, np.ndarray]) -> int:
    """One study's decode, geometry, window and 25 crops of 5 slices, as the kernel does them."""
    return crops(read_study(images / study, study, series), landmarks)


def crops(read: Study, landmarks: Mapping[str, np.ndarray]) -> int:
    """The number of crops that could be cut."""
    made = 0
    for kind, request in CROPS:
        view = ViewRequest.model_validate(request | {"size_mm": 50, "size_px": 128})
        made += sum(cut(read, view, unit, landmarks) is not None for unit in UNITS[kind])
    return made


def usual_path(images: Path, study: str, series: Series) -> int:
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


def files_of(studies: Studies) -> list[Path]:
    """All files of some studies."""
    folders = [studies.images / study / one for study, series in studies.series.items() for one, _ in series]
    return [file for folder in folders for file in sorted(folder.iterdir())]


def framed(files: Sequence[Path], folder: Path) -> list[Path]:
    """The same bytes with a TIFF directory around the pixels, where the fast path reads them so; else as they are."""
    copies = []
    for number, file in enumerate(files):
        buffer, size = read_file(file)
        found = scan(buffer.data[:size])
        header = parse(found.values) if found else None
        if found and header:
            decode_fast(buffer, size, found, header)  # leaves the directory in the buffer
        copies.append(folder / f"{number}.tif")
        copies[-1].write_bytes(buffer[: size + TIFF_TAIL].tobytes())
    return copies


def bare_decoding(files: Sequence[Path]) -> None:
    """Reading and decoding, without looking for anything in the files."""
    for file in files:
        cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)


def bare_reading(files: Sequence[Path]) -> None:
    """Reading the bytes and nothing else."""
    for file in files:
        file.read_bytes()


def landmarks_of(studies: Studies) -> dict[str, dict[str, np.ndarray]]:
    """Where the crops are cut: at the truth of a phantom; of other data, in the middle of each series."""
    try:
        truth = read_landmarks(studies.images.parent, studies.split)
        return {study: truth[study] for study in studies.series}
    except (TruthError, KeyError):
        pass
    found = {}
    for study, series in studies.series.items():
        centres = stack_centres(read_study(studies.images / study, study, series))
        kinds = {row: f"centre_{SERIES_OF[group_of(row)]}" for row in ROWS}
        found[study] = {row: centres[kind] for row, kind in kinds.items() if kind in centres}
    return found


def bench_reading(studies: Studies, rounds: int = ROUNDS) -> Table:
    """CPU of our path, of the usual one, and of two limits, a study."""
    images, landmarks, files = studies.images, landmarks_of(studies), files_of(studies)
    with tempfile.TemporaryDirectory() as scratch:
        tiffs = framed(files, Path(scratch))
        ours = partial(our_path, images)
        best = best_cpu_s(
            {
                "decode, geometry, window, 25 crops: ours": lambda: [
                    ours(one, series, landmarks[one]) for one, series in studies.series.items()
                ],
                "of that, without the crops": lambda: [
                    read_study(images / one, one, series) for one, series in studies.series.items()
                ],
                "the usual way: pydicom, np.percentile, crops": lambda: [
                    usual_path(images, one, series) for one, series in studies.series.items()
                ],
                "limit: bytes and cv2.imdecode, nothing else": lambda: bare_decoding(tiffs),
                "limit: bytes, nothing else": lambda: bare_reading(files),
            },
            rounds,
        )
    ms = [1e3 * seconds / len(studies.series) for seconds in best.values()]
    table = Table("reading", "Reading, CPU of one thread", ["what", "ms a study", "of ours", "ours over it"])
    table.rows = [[name, took, took / ms[0], ms[0] / took] for name, took in zip(best, ms, strict=True)]
    table.remarks = [f"{len(studies.series)} studies, {len(files)} files, best of {rounds} rounds in turns"]
    table.figures = [
        (
            "DICOM to 25 crops, CPU a study, against pydicom + `np.percentile`",
            f"{ms[0]:.0f} ms against {ms[2]:.0f} ms: {ms[2] / ms[0]:.1f} ×",
        ),
        (
            "the same, against reading the bytes and `cv2.imdecode` alone",
            f"{ms[0]:.0f} ms against {ms[3]:.0f} ms: {ms[0] / ms[3]:.1f} × as long",
        ),
    ]
    return table


def bench_loader(rounds: int = ROUNDS) -> Table:
    """Stacks a second from a memory-mapped cache, against PNG files, one thread."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "crops.npy"
        np.save(path, generator.integers(0, 255, (STACKS, *STACK), np.uint8))
        pixels = np.load(path, mmap_mode="r")
        view = CachedView(pixels, np.ones(STACKS, bool), np.zeros((STACKS, STACK[0], 3, 3)))
        order = generator.permutation(STACKS)
        batches = [order[start : start + 64] for start in range(0, STACKS, 64)]
        buffer = torch.empty((64, *STACK), dtype=torch.uint8)
        names = [str(Path(folder) / f"{number}.png") for number in range(PNGS)]
        for name, stack in zip(names, pixels[:PNGS], strict=True):
            cv2.imwrite(name, stack.reshape(-1, STACK[-1]))
        best = best_cpu_s(
            {
                "cache": lambda: [take(view, batch, buffer[: len(batch)]) for batch in batches],
                "PNG": lambda: [cv2.imread(name, cv2.IMREAD_GRAYSCALE) for name in names],
            },
            rounds,
        )
    cache, png = STACKS / best["cache"], PNGS / best["PNG"]
    table = Table("loader", "Training loader, stacks of 5 × 64²", ["from", "stacks a CPU second", "× PNG"])
    table.rows = [["the cache", cache, cache / png], ["one PNG a stack", png, 1.0]]
    what = "training loader, stacks of 5 × 64² a CPU second, against one PNG a stack"
    table.figures = [(what, f"{cache:,.0f} against {png:,.0f}: {cache / png:.0f} ×")]
    return table
