"""Out-of-fold predictions of other people's models, as a table like those of our own graders.

A folder holds

    folds.csv        study_id, fold: each study's predictions are of a network that never saw the studies of its fold
    <member>.csv     one a member, as sample_submission.csv: row_id, normal_mild, moderate, severe

A member may leave whole rows (a condition, a level) out for all studies, and whole folds; nothing else.  What it takes
to package a member as well lies beside its predictions: training/packaging/foreign_members.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.lumbar.labels import ROW_INDEX, ROWS, SEVERITIES, split_row_ids
from training.data.folds import read_folds
from training.data.out_of_fold import OutOfFoldError, rows_of, together
from training.data.probability_table import read_probability_table

FOLDS = "folds.csv"
# In place of a recipe in the names of members: "elsewhere/<member>".
ELSEWHERE = "elsewhere"
# Published predictions are rounded: what is written as 0 counts as this.
LEAST_PROBABILITY = 1e-6


def member_files(folder: Path) -> dict[str, Path]:
    """Member → its CSV.  Raises OutOfFoldError where there is none, or no table of folds."""
    if not folder.is_dir():
        raise OutOfFoldError(f"OOF={folder} is no folder: name one with {FOLDS} and a CSV of predictions a member")
    found = {path.stem: path for path in sorted(folder.glob("*.csv")) if path.name != FOLDS}
    if not found:
        raise OutOfFoldError(f"OOF={folder} holds no predictions: put a CSV there for each member, as of a submission")
    if not (folder / FOLDS).is_file():
        raise OutOfFoldError(
            f"{folder / FOLDS} is not there: write study_id and fold of every study, so that it is known which "
            "predictions come from one network"
        )
    return found


def read_foreign(folder: Path, labels: pd.DataFrame, ours: Mapping[str, int]) -> pd.DataFrame:
    """All members of a folder, located ELSEWHERE, as the table that training.data.out_of_fold.read returns.

    `labels`: study × 25 of all studies of the data, -100 = missing.  `ours`: study → fold of our own networks, if there
    are any; their folds are renumbered to these.  Raises OutOfFoldError, FoldsError.
    """
    files = member_files(folder)
    folds = read_folds(folder / FOLDS, "write these two columns, with a whole number for each fold")
    if unknown := [study for study in folds if study not in labels.index]:
        raise OutOfFoldError(
            f"{folder / FOLDS} has {len(unknown)} studies that our data do not have (the first: {unknown[0]}): "
            "take them out there and in the members' files"
        )
    folds = _renumbered(folder / FOLDS, folds, ours)
    return together([_member(path, name, folds, labels) for name, path in files.items()])


def _renumbered(path: Path, theirs: Mapping[str, int], ours: Mapping[str, int]) -> dict[str, int]:
    """Their folds with the numbers of ours.  Raises OutOfFoldError where the two split the studies in other ways."""
    shared = [study for study in theirs if study in ours]
    numbers: dict[int, int] = {}
    back: dict[int, int] = {}
    for study in shared:
        if numbers.setdefault(theirs[study], ours[study]) != ours[study] or (
            back.setdefault(ours[study], theirs[study]) != theirs[study]
        ):
            raise OutOfFoldError(
                f"{path}: these are other folds than ours (study {study} is in {theirs[study]} here, in {ours[study]} "
                "of ours): train both on the same ones: their folds.csv, copied to RUNS/<recipe>/folds.csv before make "
                "train-all, is used as it is"
            )
    free = max([*ours.values(), -1]) + 1
    for number in sorted(set(theirs.values()) - set(numbers)):
        numbers[number], free = (number, free) if not ours else (free, free + 1)
    return {study: numbers[fold] for study, fold in theirs.items()}


def _member(path: Path, name: str, folds: Mapping[str, int], labels: pd.DataFrame) -> pd.DataFrame:
    pairs, probabilities = _probabilities(path)
    place = {study: number for number, study in enumerate(folds)}
    if unknown := [study for study, _ in pairs if study not in place]:
        raise OutOfFoldError(
            f"{path} has {len(set(unknown))} studies that {FOLDS} does not name (the first: {unknown[0]}): give their "
            "fold there, or take their rows out"
        )
    studies, rows = [place[study] for study, _ in pairs], [ROW_INDEX[row] for _, row in pairs]
    logits = np.full((len(folds), len(ROWS), len(SEVERITIES)), np.nan)
    logits[studies, rows] = np.log(np.maximum(probabilities, LEAST_PROBABILITY))
    answered = ~np.isnan(logits[..., 0])  # (N, 25)
    of_study = np.array(list(folds.values()))
    shown = np.isin(of_study, of_study[answered.any(1)])
    lacking = shown[:, None] & answered.any(0) & ~answered
    if lacking.any():
        study, row = np.argwhere(lacking)[0]
        raise OutOfFoldError(
            f"{path} lacks {int(lacking.sum())} rows (the first: {list(folds)[study]}_{ROWS[row]}): predict the same "
            "rows for every study of a fold"
        )
    parts = []
    for fold in sorted(set(of_study[shown].tolist())):
        its = [study for study in folds if folds[study] == fold]
        answers = {
            study: {row: logits[place[study], number] for number, row in enumerate(ROWS) if answered[:, number].any()}
            for study in its
        }
        parts.append(rows_of(ELSEWHERE, name, ELSEWHERE, fold, answers, labels))
    return pd.concat(parts, ignore_index=True)


def _probabilities(path: Path) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Study and row of each line, and its probabilities (lines, 3), which sum to 1."""
    table = read_probability_table(path, ("row_id",), "write it as sample_submission.csv")
    if table.frame.empty:
        raise OutOfFoldError(f"{path} has no rows: write the predictions of the studies that were held out")
    row_ids = table.frame["row_id"]
    pairs = split_row_ids(row_ids)
    table.refuse(
        np.array([row not in ROW_INDEX for _, row in pairs]),
        "row_id does not end in one of the 25 rows: write it as in sample_submission.csv",
    )
    table.refuse(row_ids.duplicated().to_numpy(), "row_id occurs again: keep one prediction of each row")
    table.refuse(
        ~np.isfinite(table.values).all(1) | (table.values < 0).any(1),
        "a probability is missing, negative or no number: take the row out, or predict it",
    )
    table.refuse(
        ~table.are_probabilities,
        "normal_mild, moderate and severe do not sum to 1: write probabilities, such as the softmax of logits",
    )
    return pairs, table.probabilities
