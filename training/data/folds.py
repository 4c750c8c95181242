"""Stratified folds by study, made once, saved, and shared by both stages and all profiles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.lumbar.labels import ROWS, group_of
from kernels.lumbar.run.submission import replace_text
from training.data.tables import Tables, TablesError, read_csv
from training.digests import digest


class FoldsError(Exception):
    """A file of folds that does not fit the data."""


def read_or_make_folds(path: Path, tables: Tables, folds: int, seed: int) -> dict[str, int]:
    """Study → fold, from the file if it exists.  Raises FoldsError if it was made of other studies."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = make_folds(tables.labels, folds, seed)
        frame = pd.DataFrame({"study_id": list(made), "fold": list(made.values())})
        replace_text(path, frame.to_csv(index=False))
        return made
    assignment = read_folds(path, "delete it, it is made again")
    differ = set(assignment) ^ set(tables.labels.index)
    if differ or set(assignment.values()) != set(range(folds)):
        raise FoldsError(
            f"{path} was made of other studies or another number of folds ({len(differ)} studies differ): "
            "name another folder with RUNS=, or delete the file and what was trained with it"
        )
    return assignment


def read_shared_folds(path: Path, own: Path, tables: Tables, folds: int, seed: int) -> dict[str, int]:
    """As `read_or_make_folds` of `path`, which belongs to the recipe whose localisers another recipe takes.

    Raises FoldsError too where that other recipe has folds of its own (`own`) that differ.
    """
    if own != path and own.is_file():
        mine = read_folds(own, "delete it")
        if not path.is_file() or read_folds(path, "delete it, it is made again") != mine:
            raise FoldsError(
                f"{own} has other folds than {path}, whose recipe's localisers were trained on studies that it holds "
                "out: copy one file over the other before make train-all, or delete this one"
            )
    return read_or_make_folds(path, tables, folds, seed)


def read_folds(path: Path, remedy: str) -> dict[str, int]:
    """Study → fold, as a file has it.  Raises FoldsError, whose sentence ends with the remedy."""
    try:
        frame = read_csv(path, set())
        studies, numbers = frame["study_id"], frame["fold"].astype(int)
    except (TablesError, ValueError, KeyError) as error:
        raise FoldsError(f"{path} is no table of study_id and fold ({error}): {remedy}") from error
    if (twice := studies.duplicated()).any():
        raise FoldsError(f"{path} has study {studies[twice].iloc[0]} in two folds: {remedy}")
    return dict(zip(studies, numbers.tolist(), strict=True))


def held_out_digest(assignment: Mapping[str, int], fold: int) -> str:
    """Digest of a fold's studies: what a network of this fold never saw."""
    return digest(sorted(study for study, number in assignment.items() if number == fold))


def make_folds(labels: pd.DataFrame, folds: int, seed: int) -> dict[str, int]:
    """Study → fold, stratified by the worst canal grade and by the number of other rows that are not normal."""
    from sklearn.model_selection import StratifiedKFold  # a plan reads folds, too, and need not wait for it

    if len(labels) < folds:
        raise FoldsError(f"{len(labels)} studies cannot be split into {folds} folds: give more studies")
    values = labels[list(ROWS)].to_numpy()
    spinal = np.array([group_of(row) == "spinal" for row in ROWS])
    worst = np.maximum(values[:, spinal].max(1), 0)
    abnormal = (values[:, ~spinal] > 0).sum(1)
    strata = worst * 10 + np.searchsorted(np.quantile(abnormal, [0.33, 0.67]), abnormal)
    # A stratum smaller than the number of folds is merged with its neighbour, as StratifiedKFold requires.
    for stratum in np.unique(strata)[::-1]:
        if 0 < (strata == stratum).sum() < folds:
            others = np.unique(strata[strata != stratum])
            if others.size:
                strata[strata == stratum] = others[np.abs(others - stratum).argmin()]
    order = np.argsort(labels.index.to_numpy().astype(str))
    assigned = np.zeros(len(labels), int)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(order, strata[order])):
        assigned[order[held_out]] = fold
    return {str(study): int(fold) for study, fold in zip(labels.index, assigned, strict=True)}
