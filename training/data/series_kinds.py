"""Kind of a DICOM series from its headers, for studies without a series table.

The kind follows from orientation and weighting (by name, else by echo time: T1-weighted images have short ones).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from pydicom.errors import InvalidDicomError
from tqdm import tqdm

COLUMNS = ("study_id", "series_id", "series_description")
# Spin echoes of T1-weighted spine protocols are 8–30 ms, of T2-weighted ones 80–130 ms.
LONGEST_T1_ECHO_MS = 50.0
# Slices that are more oblique than this are of no kind.
SMALLEST_COSINE = np.cos(np.radians(50))
TAGS = ["ImageOrientationPatient", "EchoTime", "SeriesDescription"]


def series_table(images: Path) -> tuple[pd.DataFrame, list[str]]:
    """The competition's series table for folders STUDY/SERIES/*.dcm, and a sentence for each skipped series."""
    rows: list[tuple[str, str, str]] = []
    left_out: list[str] = []
    studies = sorted(path for path in images.iterdir() if path.is_dir())
    for study in tqdm(studies, unit="study", desc="kinds of series"):
        for series in sorted(path for path in study.iterdir() if path.is_dir()):
            kind = kind_of(series)
            if kind is None:
                left_out.append(f"{study.name}/{series.name}: neither sagittal T1, sagittal T2 nor axial T2")
            else:
                rows.append((study.name, series.name, kind))
    return pd.DataFrame(rows, columns=list(COLUMNS)), left_out


def kind_of(series: Path) -> str | None:
    """ "Sagittal T1", "Sagittal T2/STIR" or "Axial T2", from the first conclusive header; None without one."""
    for header in _headers(series):
        plane, weighting = _plane(header), _weighting(header)
        if plane == "sagittal" and weighting:
            return "Sagittal T1" if weighting == "T1" else "Sagittal T2/STIR"
        if plane == "axial" and weighting == "T2":
            return "Axial T2"
    return None


def _headers(series: Path) -> Iterator[pydicom.Dataset]:
    for path in sorted(path for path in series.iterdir() if path.is_file()):
        try:
            yield pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
        except (InvalidDicomError, OSError, EOFError, ValueError):  # no DICOM file: the next one may be
            continue


def _plane(header: pydicom.Dataset) -> str | None:
    """The plane of the body whose normal is nearest."""
    cosines = header.get("ImageOrientationPatient")
    if cosines is None or len(cosines) != 6:
        return None
    values = np.array([float(value) for value in cosines])
    normal = np.abs(np.cross(values[:3], values[3:]))
    nearest = int(normal.argmax())
    if not normal[nearest] > SMALLEST_COSINE:
        return None
    return ("sagittal", "coronal", "axial")[nearest]


def _weighting(header: pydicom.Dataset) -> str | None:
    """T1 or T2 (including STIR): by the series description, else by echo time."""
    words = re.findall(r"T1|T2|STIR", str(header.get("SeriesDescription", "")).upper())
    named = {"T1" if word == "T1" else "T2" for word in words}
    if len(named) == 1:
        return named.pop()
    echo_ms = header.get("EchoTime")
    if echo_ms is None:
        return None
    return "T1" if float(echo_ms) < LONGEST_T1_ECHO_MS else "T2"
