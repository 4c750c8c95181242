"""The studies of a data folder: what the tables name, what the folders hold, and where they differ."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kernels.lumbar.labels import split_row_ids
from kernels.lumbar.problems import Problem
from kernels.lumbar.run.competition import read_series_table
from kernels.lumbar.run.submission import SubmissionError, read_row_ids
from kernels.lumbar.run.tables import read_table
from training.data.tables import TABLES, Tables, TablesError, read_tables
from training.data.tables import log as tables_log

TRAIN_IMAGES, TEST_IMAGES = "train_images", "test_images"
TEST_SERIES, SAMPLE = "test_series_descriptions.csv", "sample_submission.csv"


class NoData(Exception):
    """A folder without any studies, and the remedy."""


@dataclass
class Split:
    """The studies of one folder of images, with what the tables say of them."""

    name: str
    """train, test, or "" for a plain folder of studies."""
    images: Path
    series: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Study → (series id, kind)."""
    is_listed: bool = True
    """False where no table names the series: the headers say what they are."""
    coordinates: pd.DataFrame | None = None
    """As Tables.coordinates; None without usable labels."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def words(self) -> str:
        """What its studies are called."""
        return f"{self.name} studies".strip()

    def add(self, study: str, where: str, kind: str, detail: str) -> None:
        """Record a finding."""
        self.problems.append(Problem(study, where, kind, detail))


def read_splits(data: Path) -> list[Split]:
    """The training and the test studies of a folder, or those of a plain folder of studies.  Raises NoData."""
    if not data.is_dir():
        raise NoData(f"{data} is no folder: name one in the competition's layout with DATA=")
    found = []
    if (data / TRAIN_IMAGES).is_dir() or any((data / name).is_file() for name in TABLES):
        found.append(_train(data))
    if (data / TEST_IMAGES).is_dir() or (data / TEST_SERIES).is_file():
        found.append(_test(data))
    if not found and any(folders(data / study) for study in folders(data)):
        found.append(Split("", data, is_listed=False))
    if not found:
        none = f"no {TRAIN_IMAGES}, no {TEST_IMAGES} and no STUDY/SERIES/*.dcm"
        raise NoData(f"{data} holds {none}: name another folder with DATA=")
    for split in found:
        _compare_with_folders(split)
        _name_repeated(split)
    return found


def folders(folder: Path) -> list[str]:
    """The names of a folder's subfolders; none where it cannot be listed."""
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError:
        return []


def _train(data: Path) -> Split:
    split = Split("train", data / TRAIN_IMAGES)
    tables: Tables | None = None
    with _remarks(split):
        try:
            tables = read_tables(data)
        except TablesError as error:
            split.add("", _table_named(str(error)), "unusable-table", str(error))
    if tables is not None:
        split.series = {str(study): tables.series.get(str(study), []) for study in tables.labels.index}
        split.coordinates = tables.coordinates
        return split
    if (data / TABLES[1]).is_file():
        table = read_series_table(data / TABLES[1])
        split.series, split.problems = table.series, split.problems + table.problems
    split.is_listed = bool(split.series)
    for study in _labelled(data / TABLES[0]):
        split.series.setdefault(study, [])
    return split


def _table_named(sentence: str) -> str:
    """The table that a sentence is about: the first one that it names."""
    return min((name for name in TABLES if name in sentence), key=sentence.index, default="")


def _labelled(path: Path) -> list[str]:
    """The studies of train.csv, however wrong the rest of it is."""
    try:
        names = read_table(path).get("study_id", [])
    except (OSError, ValueError):
        return []
    return [name for one in names if (name := one.strip())]


@contextmanager
def _remarks(split: Split) -> Iterator[None]:
    """What the reader of the tables warns of becomes findings, in place of lines on the console."""

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            sentence = record.getMessage()
            split.add("", _table_named(sentence), "table-remark", sentence)

    kept = Kept(logging.WARNING)
    tables_log.addHandler(kept)
    propagated, tables_log.propagate = tables_log.propagate, False
    try:
        yield
    finally:
        tables_log.removeHandler(kept)
        tables_log.propagate = propagated


def _test(data: Path) -> Split:
    split = Split("test", data / TEST_IMAGES)
    split.is_listed = (data / TEST_SERIES).is_file()
    if split.is_listed:
        table = read_series_table(data / TEST_SERIES)
        split.series, split.problems = table.series, table.problems
    if (data / SAMPLE).is_file():
        try:
            asked = dict.fromkeys(study for study, _ in split_row_ids(read_row_ids(data / SAMPLE)))
        except SubmissionError as error:
            split.add("", SAMPLE, "unreadable-table", str(error))
            return split
        for study in asked if split.is_listed else ():
            if study not in split.series:
                split.add(study, SAMPLE, "no-series", f"{TEST_SERIES} lists no usable series of it")
        split.series |= {study: [] for study in asked if study not in split.series}
    return split


def _compare_with_folders(split: Split) -> None:
    """Name studies without files, and those without rows."""
    there = dict.fromkeys(folders(split.images))
    if not split.is_listed:
        split.series = {study: [] for study in there} | split.series
    for study in split.series:
        if study not in there:
            kind = "study-without-files" if split.name == "train" else "no-folder"
            split.add(study, split.images.name, kind, f"{split.images} has no folder {study}")
    for study in there:
        if study not in split.series:
            split.add(study, split.images.name, "study-without-row", "it has files, and no table names it")


def _name_repeated(split: Split) -> None:
    """Name series that are listed more than once."""
    studies_of: dict[str, list[str]] = {}
    for study, its in split.series.items():
        for series, count in Counter(series for series, _ in its).items():
            studies_of.setdefault(series, []).append(study)
            if count > 1:
                kinds = ", ".join(kind for one, kind in its if one == series)
                split.add(study, series, "series-listed-twice", f"as {kinds}")
    for series, studies in studies_of.items():
        if len(studies) > 1:
            split.add(studies[1], series, "series-listed-twice", f"also as one of study {studies[0]}")
