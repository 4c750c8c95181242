"""Soft labels: what an ensemble answers out of fold, as a table of probabilities that networks can be trained on.

A CSV with the columns study_id, condition, level, normal_mild, moderate, severe; rows that are missing are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.lumbar.labels import ROW_INDEX, ROW_PLACES, ROWS, SEVERITIES, SEVERITY_WEIGHTS
from kernels.lumbar.run.submission import whole_file
from training.data.out_of_fold import OutOfFoldError

COLUMNS = ("study_id", "condition", "level", *SEVERITIES)
# How far the three may be from summing to 1, as after rounding.
ROUNDING = 1e-3
WEIGHTS = np.array(SEVERITY_WEIGHTS)


class SoftLabelsError(OutOfFoldError):
    """A table of soft labels that cannot be used, with the line and what to do."""


def read_soft_labels(path: Path, studies: Sequence[str] | None = None) -> tuple[tuple[str, ...], np.ndarray]:
    """Studies, and their (N, 25, 3) probabilities in the order of ROWS; NaN where the table has no row.

    `studies`: those asked for; None = those of the table, in its order.  Raises SoftLabelsError.
    """
    table = _checked(path)
    studies = tuple(dict.fromkeys(table["study_id"]) if studies is None else studies)
    place = {study: number for number, study in enumerate(studies)}
    found = np.full((len(studies), len(ROWS), len(SEVERITIES)), np.nan)
    table = table[table["study_id"].isin(place)]
    at = table["study_id"].map(place).to_numpy(int), table["row"].map(ROW_INDEX).to_numpy(int)
    values = table[list(SEVERITIES)].to_numpy(float)
    found[at] = values / values.sum(1, keepdims=True)
    return studies, found


def write_soft_labels(path: Path, studies: Sequence[str], probabilities: np.ndarray) -> None:
    """Replace the table atomically; rows (N, 25, 3) with NaN are left out."""
    known = np.isfinite(probabilities).all(2)
    study, row = np.nonzero(known)
    table = pd.DataFrame(probabilities[known], columns=list(SEVERITIES))
    table.insert(0, "study_id", [studies[int(one)] for one in study])
    for place, name in enumerate(("condition", "level")):
        table.insert(1 + place, name, [ROW_PLACES[ROWS[one]][place] for one in row])
    with whole_file(path) as temporary:
        table.to_csv(temporary, index=False)


def _checked(path: Path) -> pd.DataFrame:
    remedy = f"a table of soft labels has the columns {', '.join(COLUMNS)}"
    try:
        table = pd.read_csv(
            path, dtype={"study_id": str}, keep_default_na=False, na_values={one: [""] for one in SEVERITIES}
        )
    except (OSError, ValueError) as error:
        raise SoftLabelsError(f"{path} cannot be read: {error}; {remedy}") from error
    if missing := [one for one in COLUMNS if one not in table.columns]:
        raise SoftLabelsError(f"{path} lacks the columns {', '.join(missing)}: {remedy}")
    table = table.assign(row=table["condition"] + "_" + table["level"])
    values = table[list(SEVERITIES)].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    wrong = {
        "is none of the 25 rows": ~table["row"].isin(ROWS).to_numpy(),
        "occurs twice": table.duplicated(["study_id", "row"]).to_numpy(),
        "holds no three probabilities that sum to 1": ~((values >= 0).all(1) & (np.abs(values.sum(1) - 1) <= ROUNDING)),
    }
    for reason, where in wrong.items():
        if where.any():
            first = int(where.argmax())
            name = f"{table['study_id'].iloc[first]} {table['row'].iloc[first]}"
            raise SoftLabelsError(f"{path}, line {first + 2}: {name} {reason}: correct the line or leave it out")
    table[list(SEVERITIES)] = values
    return table


def target_masses(labels: np.ndarray, answers: np.ndarray, share: float) -> np.ndarray:
    """(…, 3) float32 targets of soft losses, from labels (…) (negative = missing) and answers (…, 3) (NaN = unknown).

    A mass is what the metric's weighted loss sums over: Σ mass · -log p.  Of a label it is its weight (1, 2, 4) in its
    class.  An answer that minimises the weighted loss holds each class by its weight; undone, the expected weight is
    1 / Σ (answer / weight), and the mass that times the answer.  `share` is that of the answer where both are known; a
    row of which nothing is known has no mass.
    """
    has_label, has_answer = labels >= 0, np.isfinite(answers).all(-1)
    hard = np.eye(len(WEIGHTS))[labels.clip(0)] * WEIGHTS * has_label[..., None]
    known = np.where(has_answer[..., None], answers, 1 / len(WEIGHTS))
    soft = known / (known / WEIGHTS).sum(-1, keepdims=True)
    of_answer = np.where(has_answer, np.where(has_label, share, 1.0), 0.0)[..., None]
    return ((1 - of_answer) * hard + of_answer * soft).astype(np.float32)
