"""Lays data and weights out as Kaggle mounts them, and sees afterwards whether anybody changed them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd

from kernels.build_notebook import COMPETITION, DATASET_SLUG

# The competition's entries.  Whatever else lies beside them (the truth of a phantom data set) stays out of sight.
TEST_TABLE, SAMPLE, TEST_IMAGES = NEEDED = ("test_series_descriptions.csv", "sample_submission.csv", "test_images")
OPTIONAL = ("train.csv", "train_label_coordinates.csv", "train_series_descriptions.csv", "train_images")
OWNER = "simulated-owner"


class SimulationError(Exception):
    """Why a simulation cannot start or did not succeed, in one sentence."""


def mount(data: Path, weights: Path, root: Path, layout: str, study: str | None = None) -> Path:
    """Lay the inputs out under root/input as Kaggle mounts them, read-only; nothing big is copied.

    With `study`, the test set is that study alone.  Returns the competition's folder; raises SimulationError.
    """
    new = layout == "new"
    competition = root / "input" / ("competitions" if new else "") / COMPETITION
    dataset = root / "input" / (f"datasets/{OWNER}" if new else "") / DATASET_SLUG
    competition.mkdir(parents=True)
    dataset.mkdir(parents=True)
    for name in (*NEEDED, *OPTIONAL):
        source = (data / name).resolve()
        if study is not None and name in NEEDED:
            _mount_one_study(source, competition / name, study)
        elif source.is_dir():
            (competition / name).symlink_to(source)
        elif source.exists():
            shutil.copyfile(source, competition / name)
    for source in weights.iterdir():
        # Kaggle keeps the metadata to itself and skips folders.
        if source.is_file() and source.name != "dataset-metadata.json":
            _link(source.resolve(), dataset / source.name)
    for path in competition.iterdir():
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    for folder in (competition, dataset):
        folder.chmod(0o555)
    return competition


def first_study(data: Path) -> str:
    """The study of the public test set: the first of the table.  Raises SimulationError where there is none."""
    table = _read_table(data / TEST_TABLE)
    if "study_id" not in table or table.empty:
        raise SimulationError(f"{data / TEST_TABLE} names no study: it needs a column study_id and a row")
    return str(table["study_id"].iloc[0])


def _mount_one_study(source: Path, target: Path, study: str) -> None:
    """The part of the images, or of a table, that belongs to one study."""
    if source.is_dir():
        target.mkdir()
        if (source / study).exists():
            (target / study).symlink_to(source / study)
        return
    table = _read_table(source)
    if target.name == TEST_TABLE:
        kept = table[table["study_id"] == study]
    elif "row_id" in table:
        kept = table[table["row_id"].str.startswith(f"{study}_")]
    else:
        raise SimulationError(f"{source} has no column row_id: take the sample_submission.csv of the competition")
    if kept.empty:
        raise SimulationError(f"{source} has no row of study {study}, the first of {TEST_TABLE}: add its rows")
    kept.to_csv(target, index=False)


def _read_table(path: Path) -> pd.DataFrame:
    # As text: ids stay what they are, and numbers are written back as they were read.
    return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def _link(source: Path, target: Path) -> None:
    """A second name of a file, or a copy on another file system: in either case a real file, as on Kaggle."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def fingerprint(*folders: Path) -> dict[str, tuple[int, int]]:
    """Path → size and time of change of every file, links followed: permissions do not bind every user, this does."""
    found = {}
    for folder in folders:
        for current, _, names in os.walk(folder, followlinks=True):
            for name in names:
                state = os.stat(os.path.join(current, name))
                found[os.path.join(current, name)] = (state.st_size, state.st_mtime_ns)
    return found
