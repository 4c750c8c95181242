"""Studies of one series, written to a folder and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kernels.lumbar.dicom import pixels
from kernels.lumbar.dicom.grey_window import grey_window, to_uint8
from kernels.lumbar.dicom.header import parse, scan
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.dicom.study import Study
from tests.support.dicom.dicom_writer import upright_grid

SAGITTAL = upright_grid("sagittal", (6, 30, 24), (0.8, 0.7), 4.0, (3, -2, 5))
AXIAL = upright_grid("axial", (6, 30, 24), (0.8, 0.7), 4.0, (3, -2, 5))


def read(folder: Path, kind: str = "sagittal_t1", series: str = "7") -> Study:
    """The study of one series that was written to folder/7."""
    return read_study(folder, "1", [(series, kind)])


def kinds(study: Study) -> list[str]:
    """Of its problems."""
    return [problem.kind for problem in study.problems]


def expected_pixels(volume: np.ndarray) -> np.ndarray:
    """What the kernel makes of the values of a series."""
    return to_uint8(volume, grey_window(volume))


def words_of(path: Path, fast: bool = True) -> np.ndarray | None:
    """The stored words of a file, as the fast path or as pydicom reads them; None where the fast path declines."""
    buffer, size = pixels.read_file(path)
    found = scan(buffer.data[:size])
    if not fast:
        return pixels.decode_by_pydicom(pixels.read_dataset(buffer, size))
    header = parse(found.values) if found else None
    return None if header is None else pixels.decode_fast(buffer, size, found, header)
