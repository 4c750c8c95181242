"""Runs of two recipes, their data and the ensemble that a search finds in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.labels import ROWS
from tests.support.dicom.dicom_factory import ForeignTruth, write_foreign_dataset
from tests.support.networks.reported_runs import write_run
from training.ensemble import find


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ForeignTruth]:
    """One study and its truth."""
    root = tmp_path_factory.mktemp("data")
    return root, write_foreign_dataset(root, studies=1, seed=4, test_studies=0)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, data: tuple[Path, ForeignTruth]) -> Path:
    """Two recipes of two members and two folds; only the first study has images."""
    folder = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(1)
    names = [*data[1].train, *(f"study{number}" for number in range(28))]
    labels = random.choice(3, (len(names), len(ROWS)), p=(0.7, 0.2, 0.1))
    labels[3, 4] = -100
    table = pd.DataFrame(labels, index=names, columns=list(ROWS))
    write_run(folder, "one", table)
    write_run(folder, "two", table, weights=(2, 1, 0))
    return folder


@pytest.fixture(scope="session")
def searched(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the search wrote."""
    path = tmp_path_factory.mktemp("ensemble") / "ensemble.json"
    assert find.main(["--runs", str(runs), "--profile", "smoke", "--out", str(path)]) == 0
    return path
