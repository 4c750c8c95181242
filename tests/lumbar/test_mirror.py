"""Left and right are sacred: a mirrored study gives mirrored answers, through the whole ensemble."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.labels import MIRROR, ROWS, mirrored
from kernels.lumbar.manifest import Manifest
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.competition import read_series_table
from tests.support.anatomy.studies import MINUS_X, mirror_study
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.networks.tiny_members import PROVENANCE
from tests.support.networks.tiny_runs import GOLDEN_SEED, TinyLocaliser
from training.evaluation.predictor import Predictor
from training.fitting.export import export
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import MemberRecipe
from training.runs import RunFolder, route_of


class SidedGrader(nn.Module):
    """Logits that depend on every pixel's place and on the order of slices and views: nothing in it is symmetric."""

    def __init__(self, entry: MemberRecipe) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(len(entry.member.name))
        self.targets = len(entry.member.targets)
        shapes = [(view.slices.count, view.size_px, view.size_px) for view in entry.member.inputs]
        self.filters = nn.ParameterList(torch.randn(3 * self.targets, *shape, generator=generator) for shape in shapes)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        views, present = inputs[:-1], inputs[-1]
        logits = present.sum(1, keepdim=True)
        for number, (view, one) in enumerate(zip(views, self.filters, strict=True)):
            logits = (
                logits + torch.einsum("bshw,kshw->bk", view, one) * present[:, number, None] / one[0].numel() ** 0.5
            )
        return logits.reshape(-1, self.targets, 3)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """The smoke recipe's members, with its real inputs, answered by networks that are anything but symmetric."""
    recipe = load_named("split_and_global", "smoke")
    folder, entries = RunFolder(tmp_path_factory.mktemp("runs"), recipe), recipe.members()
    for entry in entries:
        net = TinyLocaliser(entry.member) if entry.member.role == "localiser" else SidedGrader(entry)
        export(net, entry, folder.network_folder(entry.member.name, 0), PROVENANCE, GOLDEN_SEED)
    artefacts = tuple(folder.artefact(entry.member.name, 0) for entry in entries)
    routes = (route_of("r", artefacts, entries),)
    manifest = Manifest(name="m", priors=public_priors(), artefacts=artefacts, routes=routes)
    return Predictor(manifest, folder.profile, torch.device("cpu"))


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Study, dict[str, np.ndarray]]]:
    root: Path = tmp_path_factory.mktemp("data")
    truth = write_foreign_dataset(root, studies=3, seed=11, test_studies=1)
    table = read_series_table(root / "train_series_descriptions.csv").series
    return [
        (read_study(root / "train_images" / study, study, series), truth.landmarks[study])
        for study, series in table.items()
    ]


def test_a_mirrored_study_gives_mirrored_answers(
    predictor: Predictor, studies: list[tuple[Study, dict[str, np.ndarray]]]
) -> None:
    for study, landmarks in studies:
        other = mirror_study(study)
        flipped = {mirrored(row): point * MINUS_X for row, point in landmarks.items()}
        rows = predictor.predict(study, Clock(1e9), landmarks=landmarks).rows
        answers = predictor.predict(other, Clock(1e9), landmarks=flipped).rows
        assert np.abs(rows - rows[list(MIRROR)]).max() > 0.05, "the test's networks see no difference between the sides"
        assert np.abs(answers - rows[list(MIRROR)]).max() < 0.02


def test_located_points_of_a_mirrored_study_are_mirrored(
    predictor: Predictor, studies: list[tuple[Study, dict[str, np.ndarray]]]
) -> None:
    for study, _ in studies:
        other = mirror_study(study)
        found = predictor.predict(study, Clock(1e9)).located["r"].points
        opposite = predictor.predict(other, Clock(1e9)).located["r"].points
        assert {mirrored(row) for row in found} == set(opposite)
        for row in ROWS:
            if row in found:
                assert np.abs(found[row] * MINUS_X - opposite[mirrored(row)]).max() < 0.1
