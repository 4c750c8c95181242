"""A table of changed labels: what `make relabel` writes, and training takes with LABELS=.

A CSV with a line a changed label, which may be edited by hand: study_id, condition, level, label (as train.csv has it),
use, and the three probabilities of the answer that contradicts it.  `use` says what training takes: nothing (the label
is dropped), both (half label, half answer: 2nd place), or answer (that alone, of a missing label or in place of one).
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.lumbar.labels import ROW_INDEX, ROW_PLACES, ROWS, SEVERITIES
from kernels.lumbar.run.submission import replace_text
from training.data.out_of_fold import OutOfFoldError
from training.data.probability_table import read_probability_table
from training.data.tables import MISSING, SEVERITY_TEXTS, Tables

NOTHING, BOTH, ANSWER = "nothing", "both", "answer"
KEYS = ["study_id", "condition", "level"]
COLUMNS = [*KEYS, "label", "use", *SEVERITIES]
# Share of the answer where both are used.
SHARE = 0.5
TEXTS = {number: text for text, number in SEVERITY_TEXTS.items()} | {MISSING: ""}


@dataclass(frozen=True)
class LabelTable:
    """Changed labels."""

    changes: pd.DataFrame
    """COLUMNS and row (one of ROWS), label as a number; probabilities sum to 1."""
    studies: tuple[str, ...]
    fingerprint: str

    def apply(self, tables: Tables, studies: Sequence[str]) -> tuple[Tables, dict[str, np.ndarray]]:
        """The tables without the dropped and replaced labels of `studies`; and study → (25, 3) answers that take a
        share of its targets, or all of one without a label; NaN where none does.

        Raises OutOfFoldError where a label is not the one that was changed.
        """
        self.check(tables.labels)
        changes = self.changes[self.changes["study_id"].isin(set(studies) & set(tables.labels.index))]
        labels, answers = tables.labels.copy(), dict[str, np.ndarray]()
        for one in changes.to_dict("records"):
            study, row = one["study_id"], one["row"]
            if one["use"] != BOTH:
                labels.at[study, row] = MISSING
            if one["use"] == NOTHING:
                continue
            its = answers.setdefault(study, np.full((len(ROWS), len(SEVERITIES)), np.nan))
            its[ROW_INDEX[row]] = [one[name] for name in SEVERITIES]
        return replace(tables, labels=labels), answers

    def check(self, labels: pd.DataFrame) -> None:
        """Raises OutOfFoldError where a label, study × row, is not the one that was changed."""
        for study, row, label in self.changes[["study_id", "row", "label"]].itertuples(index=False):
            if study in labels.index and labels.at[study, row] != label:
                raise OutOfFoldError(
                    f"LABELS= changes {study} {row}, which train.csv does not label "
                    f"'{TEXTS[label]}': make relabel again, with runs on these data"
                )


def is_label_table(path: Path) -> bool:
    """Whether a file has the columns of a table of changed labels."""
    if path.suffix != ".csv" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        heading = next(csv.reader(file, skipinitialspace=True), [])
    return {"label", "use"} <= {name.strip() for name in heading}


def read_label_table(path: Path) -> LabelTable:
    """Read and check a table.  Raises OutOfFoldError with the line and what to do."""
    table = read_probability_table(path, (*KEYS, "label", "use"), "make relabel writes it anew")
    frame, rows = table.frame, table.rows
    used = frame["use"].isin([BOTH, ANSWER]).to_numpy()
    wrong = {
        "condition and level are none of the 25 rows": ~rows.isin(ROWS).to_numpy(),
        "this label is changed before": frame.duplicated(KEYS).to_numpy(),
        f"label is none of {', '.join(SEVERITY_TEXTS)}, empty": ~frame["label"].isin(list(TEXTS.values())).to_numpy(),
        f"use is none of {NOTHING}, {BOTH}, {ANSWER}": ~frame["use"].isin([NOTHING, BOTH, ANSWER]).to_numpy(),
        f"a missing label cannot be used ({BOTH})": ((frame["use"] == BOTH) & (frame["label"] == "")).to_numpy(),
        "the answer is used, and is no three probabilities that sum to 1": used & ~table.are_probabilities,
    }
    for reason, where in wrong.items():
        table.refuse(where, f"{reason}: correct the line or take it out")
    numbers = {text: number for number, text in TEXTS.items()}
    frame = frame.assign(row=rows, label=frame["label"].map(numbers))
    frame[list(SEVERITIES)] = table.probabilities
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return LabelTable(frame, tuple(dict.fromkeys(frame["study_id"])), digest)


def write_label_table(path: Path, changes: Sequence[Mapping[str, object]]) -> None:
    """Replace the table atomically.  `changes`: study_id, row, label (a number), use, and answer (3,)."""
    lines = []
    for one in changes:
        row, answer = str(one["row"]), np.asarray(one["answer"], np.float64)
        place = one["study_id"], *ROW_PLACES[row]
        lines.append([*place, TEXTS[int(str(one["label"]))], one["use"], *(f"{value:.6f}" for value in answer)])
    replace_text(path, pd.DataFrame(lines, columns=COLUMNS).to_csv(index=False))
