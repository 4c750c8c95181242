"""Mounts data and weights as Kaggle does, and detects changes to them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd

from kernels.build_notebook import COMPETITION, DATASET_SLUG
from kernels.lumbar.labels import split_row_ids
from kernels.lumbar.run.tables import read_table

# The competition's entries; others (the truth of a phantom data set) are not mounted.
TEST_TABLE, SAMPLE, TEST_IMAGES = NEEDED = ("test_series_descriptions.csv", "sample_submission.csv", "test_images")
OPTIONAL = ("train.csv", "train_label_coordinates.csv", "train_series_descriptions.csv", "train_images")
OWNER = "simulated-owner"


class SimulationError(Exception):
    """Why a simulation cannot start or did not succeed, in one sentence."""


def mount(data: Path, weights: Path, root: Path, layout: str, study: str | None = None) -> Path:
    """Mount the inputs under root/input as Kaggle does, read-only, without copying large files.

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
        # Kaggle mounts no metadata and skips folders.
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
    table = pd.DataFrame(read_table(data / TEST_TABLE))
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
    table = pd.DataFrame(read_table(source))
    if target.name == TEST_TABLE:
        kept = table[table["study_id"] == study]
    elif "row_id" in table:
        kept = table[[its == study for its, _ in split_row_ids(table["row_id"])]]
    else:
        raise SimulationError(f"{source} has no column row_id: take the sample_submission.csv of the competition")
    if kept.empty:
        raise SimulationError(f"{source} has no row of study {study}, the first of {TEST_TABLE}: add its rows")
    kept.to_csv(target, index=False)


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy on another file system: a regular file, as on Kaggle."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def fingerprint(*folders: Path) -> dict[str, tuple[int, int]]:
    """Path → size and mtime of every file, links followed: permissions do not stop root, this detects its changes."""
    walks = [walk for folder in folders for walk in os.walk(folder, followlinks=True)]
    paths = [os.path.join(current, name) for current, _, names in walks for name in names]
    return {path: ((state := os.stat(path)).st_size, state.st_mtime_ns) for path in paths}
