"""What holds for every test: one thread, the same random numbers in any order, and an importable timm."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_factory import write_foreign_dataset
from recipe_members import export_untrained

from kernels.lumbar.competition import read_series_table
from kernels.lumbar.dicom import read_study
from kernels.lumbar.manifest import Artefact
from training import torchvision_shim
from training.recipe import MemberRecipe

torchvision_shim.apply()
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """Folder and artefact of a network of a recipe with random weights, exported once."""
    made: dict[str, tuple[Path, Artefact]] = {}

    def get(recipe: MemberRecipe) -> tuple[Path, Artefact]:
        name = recipe.member.name
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, export_untrained(recipe, folder)
        return made[name]

    return get


@pytest.fixture(scope="module")
def foreign_study(tmp_path_factory: pytest.TempPathFactory):
    """A study that the phantom did not make, and where its landmarks are."""
    root = tmp_path_factory.mktemp("data")
    truth = write_foreign_dataset(root, studies=1, seed=11, test_studies=0)
    ((name, series),) = read_series_table(root / "train_series_descriptions.csv").series.items()
    return read_study(root / "train_images" / name, name, series), truth.landmarks[name]
