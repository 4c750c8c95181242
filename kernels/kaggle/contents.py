"""Counts of studies, series, images and rows in a data folder, compared with the competition's."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path

STUDIES = "studies in train_images"
SERIES = "series in train_images"
IMAGES = "images in train_images"
LABELLED = "rows in train.csv"
TABLES = (
    "train.csv",
    "train_series_descriptions.csv",
    "train_label_coordinates.csv",
    "test_series_descriptions.csv",
    "sample_submission.csv",
)
COMPETITION_COUNTS: Mapping[str, int] = {
    STUDIES: 1975,
    SERIES: 6294,
    IMAGES: 147_000,
    "studies in test_images": 1,
    "series in test_images": 3,
    LABELLED: 1975,
    "rows in train_series_descriptions.csv": 6294,
    "rows in train_label_coordinates.csv": 48_692,
    "rows in test_series_descriptions.csv": 3,
    "rows in sample_submission.csv": 25,
}
# The number of images is known to the thousand, all others exactly.
TOLERANCES: Mapping[str, int] = {IMAGES: 1000}
# 35 GB of compressed pixels, which an archive makes no smaller, and room for the file system's own needs.
ARCHIVE_BYTES = 36_000_000_000
UNPACKED_BYTES = 36_000_000_000


def data_command(folder: Path) -> str:
    """The command that completes a data folder."""
    return f"make data OUT={folder}"


def count_contents(folder: Path) -> dict[str, int]:
    """The counts of COMPETITION_COUNTS for a data folder, 0 for what is not there.  Raises OSError."""
    found = {}
    for images in ("train_images", "test_images"):
        studies = _folders(folder / images)
        series = [path for study in studies for path in _folders(study)]
        found[f"studies in {images}"] = len(studies)
        found[f"series in {images}"] = len(series)
        if images == "train_images":
            found[IMAGES] = sum(name.endswith(".dcm") for path in series for name in os.listdir(path))
    return found | {f"rows in {table}": _rows(folder / table) for table in TABLES}


def differences(found: Mapping[str, int]) -> list[str]:
    """Deviations from COMPETITION_COUNTS, a phrase each."""
    return [
        f"{found.get(name, 0):,} {name} instead of {'about ' if name in TOLERANCES else ''}{count:,}"
        for name, count in COMPETITION_COUNTS.items()
        if abs(found.get(name, 0) - count) > TOLERANCES.get(name, 0)
    ]


def is_other_data(found: Mapping[str, int]) -> bool:
    """Whether the labels are of another data set than the competition's: a phantom, or a part of it."""
    return found[LABELLED] not in (0, COMPETITION_COUNTS[LABELLED])


def _folders(parent: Path | str) -> list[str]:
    try:
        with os.scandir(parent) as entries:
            return [entry.path for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return []


def _rows(table: Path) -> int:
    try:
        with table.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            return max(0, sum(any(row) for row in csv.reader(file)) - 1)
    except FileNotFoundError:
        return 0
