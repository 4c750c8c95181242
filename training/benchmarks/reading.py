"""From DICOM files to crops: the kernel's path, the usual one, and the limits that no path can pass.

CPU seconds are the best of several rounds in which all take turns, so that other load on the machine changes little.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pydicom
from tqdm import tqdm

from kernels.lumbar.answers.spine_shape import stack_centres
from kernels.lumbar.dicom.header import parse, scan
from kernels.lumbar.dicom.pixels import TIFF_TAIL, decode_fast, read_file
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.inputs.views import cut
from kernels.lumbar.labels import ROWS, UNITS
from kernels.lumbar.specs import ViewRequest
from training.benchmarks.studies import Studies
from training.benchmarks.tables import Table
from training.evaluation.localiser_findings import Points, view_of
from training.evaluation.truth import TruthError, read_landmarks

# Unit, series, landmark and choice of slices of the 25 crops.
CROPS = (
    ("level", "sagittal_t2", "spinal_canal_stenosis", "middle"),
    ("level_side", "sagittal_t1", "neural_foraminal_narrowing", "landmark"),
    ("level_side", "axial_t2", "subarticular_stenosis", "landmark"),
)
Series = Sequence[tuple[str, str]]


def bench_reading(studies: Studies, rounds: int) -> Table:
    """CPU a study of the kernel's path, of the usual one, and of two limits."""
    landmarks, files = landmarks_of(studies), files_of(studies)
    images = [(studies.images / study, study, series) for study, series in studies.series.items()]
    with tempfile.TemporaryDirectory() as scratch:
        tiffs = framed(files, Path(scratch))
        works: dict[str, Callable[[], object]] = {
            "decode, geometry, window, 25 crops: the kernel": lambda: [
                cut_crops(read_study(*one), landmarks[one[1]]) for one in images
            ],
            "of that, without the crops": lambda: [read_study(*one) for one in images],
            "the usual way: pydicom, np.percentile, crops": lambda: [usual_path(one[0], one[2]) for one in images],
            "limit: bytes and cv2.imdecode, nothing else": lambda: decode_only(tiffs),
            "limit: bytes, nothing else": lambda: [file.read_bytes() for file in files],
        }
        best = dict.fromkeys(works, float("inf"))
        for name in tqdm([*works] * rounds, unit="round", desc="reading", leave=False):
            started = time.process_time()
            works[name]()
            best[name] = min(best[name], time.process_time() - started)
    ms = [1e3 * seconds / len(images) for seconds in best.values()]
    table = Table("reading", "Reading, CPU of one thread", ["what", "ms a study", "of the kernel's", "kernel over it"])
    table.rows = [[name, took, took / ms[0], ms[0] / took] for name, took in zip(best, ms, strict=True)]
    table.remarks = [f"{len(images)} studies, {len(files)} files, best of {rounds} rounds in turns"]
    return table


def cut_crops(study: Study, landmarks: Points) -> int:
    """Cut up to 25 crops of 5 slices, as for graders; how many could be cut."""
    made = 0
    for unit_kind, series, condition, slices in CROPS:
        request = {"series": series, "centre": [condition], "slices": {"by": slices, "count": 5}}
        view = ViewRequest.model_validate({**request, "size_mm": 50, "size_px": 128})
        made += sum(cut(study, view, unit, landmarks) is not None for unit in UNITS[unit_kind])
    return made


def usual_path(images: Path, series: Series) -> int:
    """What the winners' code does: pydicom, np.percentile over the volume, float scaling, fixed crops, cv2.resize.

    Returns the number of crops.
    """
    made = 0
    for identifier, kind in series:
        slices = [pydicom.dcmread(file) for file in sorted((images / identifier).iterdir())]
        slices.sort(key=lambda one: float(one.ImagePositionPatient[2 if kind == "axial_t2" else 0]))
        volume = np.stack([one.pixel_array for one in slices if one.Rows == slices[0].Rows]).astype(np.float32)
        low, high = np.percentile(volume, (1, 99))
        scaled = (np.clip(volume, low, high) - low) / max(high - low, 1e-6) * 255  # (S, H, W)
        half, middle = scaled.shape[1] // 6, scaled.shape[1] // 2
        for _ in range(5 if kind == "sagittal_t2" else 10):
            for image in scaled[:5]:
                crop = image[middle - half : middle + half, : 2 * half]
                cv2.resize(crop, (128, 128), interpolation=cv2.INTER_CUBIC)
            made += 1
    return made


def files_of(studies: Studies) -> list[Path]:
    """All files of some studies."""
    folders = [studies.images / study / one for study, series in studies.series.items() for one, _ in series]
    return [file for folder in folders for file in sorted(folder.iterdir())]


def framed(files: Sequence[Path], folder: Path) -> list[Path]:
    """Copies for `decode_only`: the same bytes, with a TIFF directory where the kernel's fast path adds one."""
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


def decode_only(files: Sequence[Path]) -> None:
    """Read and decode, without looking for anything in the files."""
    for file in files:
        cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)


def landmarks_of(studies: Studies) -> Mapping[str, Points]:
    """Where the crops are cut: at a phantom's true landmarks; of other data, in the middle of each series."""
    try:
        truth = read_landmarks(studies.data, studies.split)
        return {study: truth[study] for study in studies.series}
    except (TruthError, KeyError):
        pass
    found = {}
    for study, series in studies.series.items():
        centres = stack_centres(read_study(studies.images / study, study, series))
        names = {row: f"centre_{view_of(row)}" for row in ROWS}
        found[study] = {row: centres[name] for row, name in names.items() if name in centres}
    return found
