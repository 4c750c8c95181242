"""What holds for every test: one thread, the same random numbers in any order, and an importable timm."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import build_dataset
from kernels.kaggle import client
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.manifest import Artefact
from kernels.lumbar.run.competition import read_series_table
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.faults.fault_runs import Answered, run_here, write_studies
from tests.support.kaggle.kaggle_server import KaggleServer
from tests.support.kaggle.warm_client import WarmClient
from tests.support.networks.recipe_members import export_untrained
from tests.support.networks.seeing_networks import seeing_package
from tests.support.networks.tiny_members import PROVENANCE, grader
from tests.support.networks.tiny_runs import write_runs
from training import networks
from training.fitting.export import export
from training.networks.parts import torchvision_shim
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import MemberRecipe

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


@pytest.fixture(scope="session")
def warm_client() -> Iterator[WarmClient]:
    """The real client, ready to be forked."""
    started = WarmClient()
    yield started
    started.close()


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_client: WarmClient) -> Iterator[KaggleServer]:
    """A Kaggle that the client talks to in this test, and beside which nothing was asked for."""
    stand_in = SimpleNamespace(run=warm_client.run, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(client, "subprocess", stand_in)
    with KaggleServer() as server:
        for name, value in server.environment(tmp_path / "scratch").items():
            monkeypatch.setenv(name, value)
        yield server
        assert server.connects == []


@pytest.fixture(scope="session")
def two_studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A competition's folder with two test studies, of another maker than the phantom's."""
    folder = tmp_path_factory.mktemp("two_studies")
    write_foreign_dataset(folder, studies=1, seed=5, test_studies=2)
    return folder


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny networks with the inputs and answers of a real recipe, packaged for the local Kaggle's user."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("packages") / "weights"
    write_runs(runs, load_named("split_and_global", "smoke"))
    given = ["--runs", str(runs), "--out", str(out), "--profile", "smoke", "--owner", "ann"]
    assert build_dataset.main(given) == 0
    return out


@pytest.fixture(scope="session")
def seeing(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with networks whose answers depend on every pixel."""
    return seeing_package(package, tmp_path_factory.mktemp("seeing") / "weights")


@pytest.fixture(scope="session")
def clean_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A competition's folder with the clean studies 1 and 2."""
    return write_studies(tmp_path_factory.mktemp("competition"), ("1", "2"), {})


@pytest.fixture(scope="session")
def clean_answers(clean_pair: Path, seeing: Path, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    """What the kernel answers for them."""
    found = run_here(clean_pair, seeing, tmp_path_factory.mktemp("clean_answers"))
    assert found.report["problems"] == []
    return found


@pytest.fixture(scope="module")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny exported grader."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    export(networks.for_member(grader()), grader(), folder, PROVENANCE, seed=5)
    return folder


@pytest.fixture
def artefact(tiny_export: Path) -> Artefact:
    """Its artefact."""
    return Artefact.model_validate_json((tiny_export / "artefact.json").read_text())


@pytest.fixture(scope="session")
def ten_studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A competition's folder with ten test studies: more than one batch of the largest size."""
    folder = tmp_path_factory.mktemp("ten_studies")
    write_foreign_dataset(folder, studies=1, seed=13, test_studies=10)
    return folder


@pytest.fixture(scope="session")
def whole(ten_studies: Path, seeing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run answers for them."""
    out = tmp_path_factory.mktemp("whole")
    run_here(ten_studies, seeing, out)
    return out
