"""A whole data set: its studies, made in parallel, and the tables last."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from .study import PhantomStudy, StudyOrder, make_study
from .tables import LAST_TABLE, write_competition_tables, write_truth

_SERIES_AT_MOST = 8
_SPLITS = ("train", "test")
# Counts up when the same options come to mean other files.
_VERSION = 3


@dataclass(frozen=True)
class Options:
    """Options of a data set: numbers of studies, seed, scale of each side of an image in pixels."""

    train: int
    test: int
    seed: int = 0
    scale: float = 1.0


def order_studies(folder: Path, options: Options) -> tuple[list[StudyOrder], list[StudyOrder]]:
    """Orders for the train and the test studies, each in ascending order of study id."""
    splits: list[list[StudyOrder]] = []
    counts = (options.train, options.test)
    rng = np.random.default_rng((options.seed, 7))
    width = 1 + _SERIES_AT_MOST
    ids = rng.choice(2**32 - 10**6, size=(sum(counts), width), replace=False) + 10**6
    for number, (split, count) in enumerate(zip(_SPLITS, counts, strict=True)):
        rows = ids[:count] if number == 0 else ids[counts[0] :]
        orders = [
            StudyOrder(
                folder=folder / f"{split}_images" / str(row[0]),
                study_id=int(row[0]),
                series_ids=tuple(int(value) for value in row[1:]),
                seed=(options.seed, number, index),
                scale=options.scale,
            )
            for index, row in enumerate(rows)
        ]
        splits.append(sorted(orders, key=lambda order: order.study_id))
    return splits[0], splits[1]


def make_dataset(folder: Path, options: Options, jobs: int = 0, keep: bool = False) -> None:
    """Write a data set, the same whatever the number of jobs (0 = one a core).

    The tables come last: a folder without sample_submission.csv is not complete.  Where `keep` is set and the
    folder was begun with the same options, what it holds is kept and the rest is added.
    Raises FileExistsError where the folder holds anything else.
    """
    if _begin(folder, options, keep):
        return
    orders = order_studies(folder, options)
    studies = _make_all([*orders[0], *orders[1]], jobs or os.cpu_count() or 1)
    train = list(zip(orders[0], studies[: options.train], strict=True))
    test = list(zip(orders[1], studies[options.train :], strict=True))
    write_truth(folder / "truth", train, test)
    write_competition_tables(folder, train, test)


def _begin(folder: Path, options: Options, keep: bool) -> bool:
    """Lay out the folder; whether it is complete already."""
    record = folder / "truth" / "options.json"
    wanted = json.dumps({"version": _VERSION, **asdict(options)}, indent=2)
    if folder.exists() and any(folder.iterdir()):
        if not keep or not record.is_file() or record.read_text() != wanted:
            raise FileExistsError(f"{folder} holds {_kind_of(record)} already: remove it, or choose another folder")
        return (folder / LAST_TABLE).is_file()
    for name in ("truth", *(f"{split}_images" for split in _SPLITS)):
        (folder / name).mkdir(parents=True)
    record.write_text(wanted)
    return False


def _kind_of(record: Path) -> str:
    """What a folder holds, by its record of options."""
    try:
        options = json.loads(record.read_text())
    except (OSError, ValueError):
        options = None
    if not isinstance(options, dict):
        return "something else"
    return "a phantom of other options (" + ", ".join(f"{name} {value}" for name, value in options.items()) + ")"


def _make_all(orders: list[StudyOrder], jobs: int) -> list[PhantomStudy]:
    progress = {"total": len(orders), "unit": "study", "desc": "phantom"}
    if jobs == 1:
        return [make_study(order) for order in tqdm(orders, **progress)]  # type: ignore[call-overload]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        return list(tqdm(pool.map(make_study, orders), **progress))  # type: ignore[call-overload]


def _one_thread() -> None:
    """Studies run in parallel processes: more threads would only compete for the cores."""
    cv2.setNumThreads(1)
