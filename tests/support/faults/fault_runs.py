"""Runs of the kernel on studies of the fault table, and what is read off them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kernels.lumbar import predict
from kernels.lumbar.labels import ROWS, SEVERITIES
from kernels.lumbar.run.submission import check
from tests.support.anatomy.clean_study import table_rows, write_clean_study
from tests.support.faults.fault_table import FAULTS, Fault
from tests.support.faults.faulty_studies import Rows

SERIES_TABLE, SAMPLE = "test_series_descriptions.csv", "sample_submission.csv"


@dataclass(frozen=True)
class Answered:
    """What a run that ended with code 0 and a valid file left."""

    frame: pd.DataFrame
    report: dict[str, Any]

    def rows(self, study: str) -> np.ndarray:
        """(25, 3) probabilities of a study in the order of labels.ROWS."""
        return self.frame.set_index("row_id").loc[[f"{study}_{row}" for row in ROWS], list(SEVERITIES)].to_numpy()

    def problems(self, study: str = "") -> set[str]:
        """Kinds of the problems that the report names for a study, or for none."""
        return {problem["kind"] for problem in self.report["problems"] if problem["study"] == study}


def answered(code: int, data: Path, out: Path) -> Answered:
    """Read a run's results, and hold them against what every run owes: code 0, all rows, finite, sums of 1."""
    assert code == 0
    frame = pd.read_csv(out / "submission.csv", dtype={"row_id": str})
    ids = pd.read_csv(data / SAMPLE, dtype=str, encoding="utf-8-sig")["row_id"]
    check(frame, list(ids.str.strip()))
    return Answered(frame, json.loads((out / "run_report.json").read_text(encoding="utf-8")))


def run_here(data: Path, weights: Path, out: Path) -> Answered:
    """Run the kernel in this process."""
    code = predict.main(["--competition", str(data), "--weights", str(weights), "--out", str(out)])
    return answered(code, data, out)


def assert_same(found: Answered, expected: Answered, *studies: str) -> None:
    """The same answers to the last bit."""
    for study in studies:
        assert np.array_equal(found.rows(study), expected.rows(study)), study


def write_studies(data: Path, clean: Iterable[str], faults: Mapping[str, str]) -> Path:
    """A competition of clean studies and those of some faults (id → name), in the order of the ids' text."""
    series = {}
    for study in sorted([*clean, *faults]):
        folder = data / "test_images" / study
        if study in faults:
            series[study] = write_faulty_study(folder, FAULTS[faults[study]])
        else:
            write_clean_study(folder)
            series[study] = table_rows()
    _write_tables(data, series)
    return data


def write_faulty_study(folder: Path, one: Fault) -> Rows:
    """Write a clean study and spoil it; returns its rows of the series table."""
    write_clean_study(folder)
    with warnings.catch_warnings(action="ignore"):  # pydicom warns of values that are meant to be wrong
        rows = one.spoil(folder)
    return rows if isinstance(rows, list) else table_rows()


def _write_tables(data: Path, series: Mapping[str, list[tuple[str, str]]]) -> None:
    listed = [(study, *row) for study, rows in series.items() for row in rows]
    table = pd.DataFrame(listed, columns=["study_id", "series_id", "series_description"])
    table.to_csv(data / SERIES_TABLE, index=False)
    ids = [f"{study}_{row}" for study in series for row in ROWS]
    pd.DataFrame({"row_id": ids, **dict.fromkeys(SEVERITIES, 1 / 3)}).to_csv(data / SAMPLE, index=False)


def with_tables(data: Path, out: Path, tables: Mapping[str, bytes]) -> Path:
    """The same images beside other tables."""
    out.mkdir(parents=True)
    (out / "test_images").symlink_to(data / "test_images")
    for name in (SERIES_TABLE, SAMPLE):
        (out / name).write_bytes(tables.get(name, (data / name).read_bytes()))
    return out
