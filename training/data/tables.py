"""Reads and checks the competition's training tables; errors are one sentence with the remedy."""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.lumbar.labels import CONDITIONS, GROUPS, LEVELS, ROW_INDEX, ROWS, SERIES_KINDS, group_of
from kernels.lumbar.run.competition import names_folder

SEVERITY_TEXTS = {"Normal/Mild": 0, "Moderate": 1, "Severe": 2}
CONDITION_TEXTS = {condition.replace("_", " ").title(): condition for condition in CONDITIONS}
LEVEL_TEXTS = {level.upper().replace("_", "/"): level for level in LEVELS}
MISSING = -100
DECIMAL_ID = re.compile(r"\d+\.0*")
TABLES = ("train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv")
log = logging.getLogger("tables")


class TablesError(Exception):
    """Tables that training cannot use: file, line and remedy."""


@dataclass(frozen=True)
class Tables:
    """The three tables."""

    labels: pd.DataFrame
    """study (index, text) × 25 rows, int: 0, 1, 2, or -100 = no label."""
    series: dict[str, list[tuple[str, str]]]
    """Study → (series id, kind)."""
    coordinates: pd.DataFrame
    """study_id, series_id (text), instance (int), row (one of ROWS), x (column), y (row), in the file's pixels."""
    fingerprint: str
    """sha256 of the three files."""


def read_tables(root: Path) -> Tables:
    """Read and check the training tables of a folder in the competition's layout.  Raises TablesError."""
    if not root.is_dir():
        raise TablesError(f"{root} is no folder: name one in the competition's layout with DATA=")
    labels_file, series_file, coordinates_file = (root / name for name in TABLES)
    images = root / "train_images"
    labels = read_labels(labels_file)
    labels.index = pd.Index(
        _as_known(labels_file, labels.index, lambda study: (images / study).is_dir()), name="study_id"
    )
    if wrong := [study for study in labels.index if not names_folder(study)]:
        raise TablesError(f"{labels_file}: '{wrong[0]}' cannot be the name of a study's folder")
    known = set(labels.index)
    series = _series(series_file, known, images)
    coordinates = _coordinates(coordinates_file, known, series)
    absent = [study for study in labels.index if not (images / study).is_dir()]
    if absent:
        first = ", ".join(absent[:3])
        raise TablesError(
            f"{images} lacks {len(absent)} of {len(labels)} studies of train.csv "
            f"(the first: {first}): unpack the whole archive, or remove these studies from train.csv"
        )
    without = sorted(set(labels.index) - set(series))
    if without:
        log.warning(
            "%d studies have no usable series and will keep their priors, the first is %s", len(without), without[0]
        )
    content = hashlib.sha256()
    for name in TABLES:
        content.update((root / name).read_bytes())
    return Tables(labels, series, coordinates, content.hexdigest())


def read_csv(path: Path, columns: set[str]) -> pd.DataFrame:
    """A CSV as text, without empty and repeated rows, with at least these columns; line n has the index n - 2.

    With or without a byte order mark, quotes, and spaces around what is between the commas.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        frame = pd.read_csv(
            io.StringIO(text),
            dtype=str,
            keep_default_na=False,
            index_col=False,
            skip_blank_lines=False,
            skipinitialspace=True,
        )
    except FileNotFoundError as error:
        raise TablesError(f"{path} does not exist: DATA= names a folder in the competition's layout") from error
    except (OSError, ValueError) as error:
        raise TablesError(f"{path} cannot be read as a CSV: {error}") from error
    frame.columns = [str(column).strip() for column in frame.columns]
    missing = columns - set(frame.columns)
    if missing:
        raise TablesError(f"{path} lacks the columns {', '.join(sorted(missing))}: take the file of the competition")
    frame = frame.fillna("").apply(lambda column: column.str.strip())
    frame = frame[(frame != "").any(axis=1)]
    for column in ("study_id", "series_id"):
        if column in columns and (nameless := frame[column] == "").any():
            raise TablesError(f"{path}, line {frame.index[nameless][0] + 2}: {column} is empty: fill it in")
    repeated = frame.duplicated()
    if repeated.any():
        log.warning("%s: %d repeated rows are left out", path, int(repeated.sum()))
    return frame[~repeated]


def translate(path: Path, frame: pd.DataFrame, column: str, meanings: dict[str, object]) -> pd.Series:
    """A column with its texts mapped.  Raises TablesError for the first unknown text."""
    unknown = ~frame[column].isin(list(meanings))
    if unknown.any():
        line, text = frame.index[unknown][0] + 2, frame[column][unknown].iloc[0]
        known = ", ".join(f"'{key}'" if key else "empty" for key in meanings)
        raise TablesError(f"{path}, line {line}: {column} is '{text}', which is none of {known}: correct the line")
    return frame[column].map(meanings)


def read_labels(path: Path) -> pd.DataFrame:
    """train.csv: study (index, text) × 25 rows, int, -100 = no label.  Raises TablesError."""
    frame = read_csv(path, {"study_id", *ROWS})
    if frame["study_id"].duplicated().any():
        study = frame["study_id"][frame["study_id"].duplicated()].iloc[0]
        raise TablesError(f"{path}: study {study} occurs twice with different labels: keep one of the lines")
    if frame.empty:
        raise TablesError(f"{path} names no study")
    meanings: dict[str, object] = {**SEVERITY_TEXTS, "": MISSING}
    columns = {row: translate(path, frame, row, meanings).astype(np.int64) for row in ROWS}
    return pd.DataFrame(columns).set_index(frame["study_id"].rename("study_id"))


def _as_known(path: Path, ids: Iterable[str], is_known: Callable[[str], bool]) -> list[str]:
    """The ids; those that are known only without the decimals that a spreadsheet added (123.0) without these."""
    found = list(ids)
    decimal = {one for one in found if DECIMAL_ID.fullmatch(one) and not is_known(one)}
    meant = {one: short for one in decimal if is_known(short := one.partition(".")[0])}
    if meant:
        first = min(meant)
        count = sum(one in meant for one in found)
        log.warning("%s: %d ids have decimals, such as %s: they are read as %s", path, count, first, meant[first])
    return [meant.get(one, one) for one in found]


def _warn_of_foreign(path: Path, frame: pd.DataFrame, is_foreign: pd.Series, whose: str) -> None:
    """Name rows that belong to nothing, and count them."""
    if is_foreign.any():
        row = frame[is_foreign].iloc[0]
        first = (frame.index[is_foreign][0] + 2, row["study_id"], row["series_id"])
        log.warning(
            "%s: %d of %d rows are left out, as they are of no %s (the first: line %d, study %s, series %s)",
            *(path, int(is_foreign.sum()), len(frame), whose, *first),
        )


def _series(path: Path, studies: set[str], images: Path) -> dict[str, list[tuple[str, str]]]:
    frame = read_csv(path, {"study_id", "series_id", "series_description"})
    kinds = translate(path, frame, "series_description", dict(SERIES_KINDS))
    frame["study_id"] = _as_known(path, frame["study_id"], studies.__contains__)
    written = frame["study_id"][frame["series_id"].str.fullmatch(DECIMAL_ID.pattern)]
    folders = [images / study for study in set(written) & studies if (images / study).is_dir()]
    there = {entry.name for folder in folders for entry in folder.iterdir()}
    frame["series_id"] = _as_known(path, frame["series_id"], there.__contains__)
    _warn_of_foreign(path, frame, ~frame["study_id"].isin(studies), "study of train.csv")
    series: dict[str, list[tuple[str, str]]] = {}
    for study, identifier, kind in zip(frame["study_id"], frame["series_id"], kinds, strict=True):
        if study in studies and (identifier, kind) not in series.setdefault(study, []):
            series[study].append((identifier, str(kind)))
    return series


def _coordinates(path: Path, studies: set[str], series: dict[str, list[tuple[str, str]]]) -> pd.DataFrame:
    frame = read_csv(path, {"study_id", "series_id", "instance_number", "condition", "level", "x", "y"})
    conditions = translate(path, frame, "condition", dict(CONDITION_TEXTS))
    levels = translate(path, frame, "level", dict(LEVEL_TEXTS))
    numbers = frame[["instance_number", "x", "y"]].apply(pd.to_numeric, errors="coerce").astype(float)
    wrong = ~np.isfinite(numbers.to_numpy(float)).all(1) | (numbers["instance_number"] % 1 != 0).to_numpy()
    if wrong.any():
        line = frame.index[wrong][0] + 2
        raise TablesError(
            f"{path}, line {line}: instance_number is no whole number, or x or y no number: correct or remove the line"
        )
    known = {study: {identifier for identifier, _ in pairs} for study, pairs in series.items()}
    identifiers = {identifier for its in known.values() for identifier in its}
    frame["study_id"] = _as_known(path, frame["study_id"], studies.__contains__)
    frame["series_id"] = _as_known(path, frame["series_id"], identifiers.__contains__)
    is_of_study = frame["study_id"].isin(studies)
    pairs = zip(frame["study_id"], frame["series_id"], strict=True)
    is_of_series = pd.Series([identifier in known.get(study, ()) for study, identifier in pairs], frame.index)
    _warn_of_foreign(path, frame, ~is_of_study, "study of train.csv")
    _warn_of_foreign(path, frame, is_of_study & ~is_of_series, f"series of its study in {TABLES[1]}")
    table = pd.DataFrame(
        {
            "study_id": frame["study_id"],
            "series_id": frame["series_id"],
            "instance": numbers["instance_number"].astype(np.int64),
            "row": conditions.astype(str) + "_" + levels.astype(str),
            "x": numbers["x"].astype(float),
            "y": numbers["y"].astype(float),
        }
    )
    return table[table["row"].isin(ROW_INDEX)].reset_index(drop=True)


# (25,) index of each row's condition in GROUPS.
ROW_GROUPS = np.array([GROUPS.index(group_of(row)) for row in ROWS])
