"""Ground truth of a phantom or an imported data set, against which demos and benchmarks score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd


class TruthError(Exception):
    """A folder without a truth."""


def is_phantom(data: Path) -> bool:
    """Whether a folder was made by training.phantom, which leaves its options there."""
    return (data / "truth" / "options.json").is_file()


def score_name(data: Path) -> str:
    """What a table calls the scores of a data set: phantom scores promise nothing for patients."""
    return "phantom score" if is_phantom(data) else "score"


def read_solution(data: Path) -> pd.DataFrame:
    """The hidden solution of the test studies: row_id and one-hot severities."""
    return _read(data, "solution.csv")


def read_landmarks(data: Path, split: str) -> dict[str, dict[str, np.ndarray]]:
    """Study → row → (3,) patient mm, of the studies of a split ("train" or "test")."""
    frame = _read(data, "landmarks.csv")
    points: dict[str, dict[str, np.ndarray]] = {}
    for one in frame[frame["split"] == split].itertuples(index=False):
        point = np.array([one.x_mm, one.y_mm, one.z_mm])
        points.setdefault(str(one.study_id), {})[f"{one.condition}_{one.level}"] = point
    return points


def _read(data: Path, name: str) -> pd.DataFrame:
    path = data / "truth" / name
    if not path.is_file():
        raise TruthError(
            f"{path} does not exist: only a phantom data set (python -m training.phantom) and an import "
            "(make import-spider) have a truth"
        )
    ids = {"study_id": str, "row_id": str}
    return pd.read_csv(path, dtype=ids, keep_default_na=False, na_values=[""])  # a study may be called NA
