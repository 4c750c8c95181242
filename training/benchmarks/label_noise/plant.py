"""A phantom whose training labels have planted errors, and which of them a table of changed labels finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.lumbar.labels import ROWS, SEVERITIES
from kernels.lumbar.run.submission import replace_text
from training.data.label_table import LabelTable
from training.data.tables import MISSING, SEVERITY_TEXTS, TABLES, read_labels

SEED = 5


@dataclass(frozen=True)
class Found:
    """Shares of planted errors that are changed, of changed labels that are such, and of other labels changed."""

    planted: int
    recall: float
    precision: float
    touched: float

    def __str__(self) -> str:
        if np.isnan(self.precision):
            return f"none of {self.planted} planted errors is changed, nor any other label"
        return (
            f"{self.recall:.0%} of {self.planted} planted errors are changed, {self.touched:.1%} of all other labels; "
            f"{self.precision:.0%} of what is changed was planted"
        )


def planted(labels: pd.DataFrame, rate: float, seed: int = SEED) -> pd.DataFrame:
    """Labels (study × 25, negative = missing) of which this share is one of the other two severities."""
    random, values = np.random.default_rng(seed), labels.to_numpy()
    wrong = (random.random(values.shape) < rate) & (values >= 0)
    moved = (values + random.integers(1, len(SEVERITIES), values.shape)) % len(SEVERITIES)
    return pd.DataFrame(np.where(wrong, moved, values), labels.index, labels.columns)


def write_noisy(data: Path, out: Path, rate: float) -> Path:
    """A folder of links to the data's files beside a train.csv with planted errors."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(data.iterdir()):
        link = out / path.name
        if path.name != TABLES[0] and not link.exists():
            link.symlink_to(path.resolve())
    texts = {number: text for text, number in SEVERITY_TEXTS.items()} | {MISSING: ""}
    noisy = planted(read_labels(data / TABLES[0]), rate).replace(texts)
    replace_text(out / TABLES[0], noisy.rename_axis("study_id").to_csv())
    return out


def found_by(table: LabelTable, clean: pd.DataFrame, noisy: pd.DataFrame) -> Found:
    """What a table changes of labels (study × 25) that were planted or not."""
    changed = pd.DataFrame(False, clean.index, list(ROWS))
    for study, row in zip(table.changes["study_id"], table.changes["row"], strict=True):
        changed.loc[study, row] = True
    known = (clean[list(ROWS)] >= 0).to_numpy()
    wrong, its = (clean != noisy)[list(ROWS)].to_numpy() & known, changed.to_numpy() & known
    return Found(
        planted=int(wrong.sum()),
        recall=float(its[wrong].mean()) if wrong.any() else float("nan"),
        precision=float(wrong[its].mean()) if its.any() else float("nan"),
        touched=float(its[known & ~wrong].mean()),
    )
