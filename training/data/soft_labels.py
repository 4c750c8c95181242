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
from training.data.probability_table import read_probability_table

KEYS = ("study_id", "condition", "level")
COLUMNS = (*KEYS, *SEVERITIES)
WEIGHTS = np.array(SEVERITY_WEIGHTS)


def read_soft_labels(path: Path, studies: Sequence[str] | None = None) -> tuple[tuple[str, ...], np.ndarray]:
    """Studies, and their (N, 25, 3) probabilities in the order of ROWS; NaN where the table has no row.

    `studies`: those asked for; None = those of the table, in its order.  Raises OutOfFoldError.
    """
    table = read_probability_table(path, KEYS, f"a table of soft labels has the columns {', '.join(COLUMNS)}")
    remedy = "correct the line or leave it out"
    table.refuse(~table.rows.isin(ROWS).to_numpy(), f"condition and level are none of the 25 rows: {remedy}")
    table.refuse(table.frame.duplicated(list(KEYS)).to_numpy(), f"this row occurs twice: {remedy}")
    table.refuse(~table.are_probabilities, f"no three probabilities that sum to 1: {remedy}")
    studies = tuple(dict.fromkeys(table.frame["study_id"]) if studies is None else studies)
    place = {study: number for number, study in enumerate(studies)}
    found = np.full((len(studies), len(ROWS), len(SEVERITIES)), np.nan)
    here = table.frame["study_id"].isin(place).to_numpy()
    at = table.frame["study_id"][here].map(place).to_numpy(int), table.rows[here].map(ROW_INDEX).to_numpy(int)
    found[at] = table.probabilities[here]
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
