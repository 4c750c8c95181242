"""Finished runs of one recipe, exported without training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.networks.tiny_runs import write_runs
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import Recipe


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """A recipe with localisers and graders of all conditions."""
    return load_named("split_and_global", "smoke")


@pytest.fixture(scope="session")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its finished runs, which no test changes."""
    runs = tmp_path_factory.mktemp("runs")
    write_runs(runs, recipe)
    return runs


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished runs that a test may spoil."""
    return shutil.copytree(finished, tmp_path / "runs")
