"""CSVs with the probabilities of the three severities in each line: read, checked, and mistakes named by their line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.lumbar.labels import SEVERITIES
from training.data.out_of_fold import OutOfFoldError
from training.data.tables import TablesError, read_csv

# How far the three may be from summing to 1, as after rounding.
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ProbabilityTable:
    """The lines of a file."""

    path: Path
    frame: pd.DataFrame
    """All columns as text; line n of the file has the index n - 2."""
    values: np.ndarray
    """(lines, 3) as they are written; NaN = no number."""

    @property
    def are_probabilities(self) -> np.ndarray:
        """(lines,) whether the three are 0 or more and sum to 1, up to rounding."""
        found: np.ndarray = (self.values >= 0).all(1) & (np.abs(self.values.sum(1) - 1) <= SUM_TOLERANCE)
        return found

    @property
    def probabilities(self) -> np.ndarray:
        """(lines, 3) that sum to 1; NaN where the three are no probabilities."""
        sums = np.where(self.are_probabilities, self.values.sum(1), np.nan)
        return self.values / sums[:, None]

    @property
    def rows(self) -> pd.Series:
        """The row of each line, of its condition and level."""
        return self.frame["condition"] + "_" + self.frame["level"]

    def refuse(self, wrong: np.ndarray, what: str) -> None:
        """Raises OutOfFoldError with the first line that is `wrong` (lines,), and how many there are."""
        if wrong.any():
            line = self.frame.index[int(wrong.argmax())] + 2
            raise OutOfFoldError(f"{self.path}, line {line}: {what} ({int(wrong.sum())} lines)")


def read_probability_table(path: Path, columns: tuple[str, ...], remedy: str) -> ProbabilityTable:
    """Read a file with `columns` and the three severities.

    Raises OutOfFoldError; `remedy`: what to do where the file or one of its columns is not there.
    """
    if not path.is_file():
        raise OutOfFoldError(f"{path} does not exist: {remedy}")
    try:
        frame = read_csv(path, set())
    except TablesError as error:
        raise OutOfFoldError(str(error)) from error
    if missing := [name for name in (*columns, *SEVERITIES) if name not in frame.columns]:
        raise OutOfFoldError(f"{path} lacks the columns {', '.join(missing)}: {remedy}")
    values = frame[list(SEVERITIES)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64).reshape(-1, 3)
    return ProbabilityTable(path, frame, values)
