"""From DICOM files to crops: the kernel's path, the usual one, and the limit: its own OpenCV calls and nothing else.

CPU seconds are the best of several rounds in which all take turns, so that other load on the machine changes little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pydicom
from tqdm import tqdm

from kernels.lumbar.answers.spine_shape import stack_centres
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.inputs.views import cut
from kernels.lumbar.labels import ROWS, UNITS
from kernels.lumbar.specs import ViewRequest
from training.benchmarks.studies import Studies
from training.benchmarks.tables import Table
from training.evaluation.localiser_findings import Points, view_of
from training.evaluation.truth import TruthError, read_landmarks


def _request(series: str, landmark: str, slices: str) -> ViewRequest:
    request = {"series": series, "centre": [landmark], "slices": {"by": slices, "count": 5}}
    return ViewRequest.model_validate({**request, "size_mm": 50, "size_px": 128})


# Unit and request of the 25 crops.
CROPS = (
    ("level", _request("sagittal_t2", "spinal_canal_stenosis", "middle")),
    ("level_side", _request("sagittal_t1", "neural_foraminal_narrowing", "landmark")),
    ("level_side", _request("axial_t2", "subarticular_stenosis", "landmark")),
)
# All that the kernel calls between a file and a crop.
OPENCV_CALLS = ("imdecode", "merge", "calcHist", "subtract", "convertScaleAbs", "remap", "resize")
UNTOUCHED = ("remap", "resize")
Series = Sequence[tuple[str, str]]
Call = tuple[Callable[..., Any], Sequence[object], Mapping[str, object]]


def bench_reading(studies: Studies, rounds: int) -> Table:
    """CPU a study of the kernel's path, of the usual one, and of the limit."""
    landmarks, files = landmarks_of(studies), files_of(studies)
    images = [(studies.images / study, study, series) for study, series in studies.series.items()]

    def kernel_path() -> list[int]:
        return [cut_crops(read_study(*one), landmarks[one[1]]) for one in images]

    calls = record_calls(kernel_path)
    works: dict[str, Callable[[], object]] = {
        "decode, geometry, window, 25 crops: the kernel": kernel_path,
        "of that, without the crops": lambda: [read_study(*one) for one in images],
        "the usual way: pydicom, np.percentile, crops": lambda: [usual_path(one[0], one[2]) for one in images],
        "limit: the kernel's file reads and OpenCV calls alone": lambda: repeat([(read_bytes, [files], {}), *calls]),
        "of that, the bytes": lambda: read_bytes(files),
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
    views = [cut(study, request, unit, landmarks) for kind, request in CROPS for unit in UNITS[kind]]
    return len([view.pixels for view in views if view is not None])


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


def read_bytes(files: Sequence[Path]) -> None:
    """Read files one after the other into the same memory."""
    memory = bytearray(max(file.stat().st_size for file in files))
    for path in files:
        with open(path, "rb", buffering=0) as file:
            file.readinto(memory)


def record_calls(work: Callable[[], object]) -> list[Call]:
    """The OpenCV calls of some work, with copies of the arrays that it reuses."""
    calls: list[Call] = []

    def kept(value: object) -> object:
        if isinstance(value, (list, tuple)):
            return [kept(one) for one in value]
        return value.copy() if isinstance(value, np.ndarray) else value

    def recording(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: object, **options: object) -> Any:
            # The images that crops are cut from stay as they are, and are large.
            arguments = given if name in UNTOUCHED else [kept(one) for one in given]
            calls.append((function, arguments, options))
            return function(*given, **options)

        return call

    with ExitStack() as patches:
        for name in OPENCV_CALLS:
            patches.enter_context(mock.patch.object(cv2, name, recording(name, getattr(cv2, name))))
        work()
    return calls


def repeat(calls: Sequence[Call]) -> None:
    """The same calls again, with nothing between them."""
    for function, arguments, options in calls:
        function(*arguments, **options)


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
