"""Other people's TorchScript networks: described, tried, packaged beside ours, and run by the kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor, nn

import build_dataset
from kernels.lumbar.labels import GROUPS, SEVERITIES
from kernels.lumbar.networks.weights import read_manifest
from tests.support.faults.fault_runs import run_here
from tests.support.networks.tiny_runs import write_runs
from training.packaging.foreign_members import read_networks
from training.recipe_schema.load import load_named
from training.runs import UnusableRun

RECIPE, NAME = "split_and_global", "Their-Net"
VIEW = {"series": "sagittal_t2", "slices": {"by": "middle", "count": 3}, "size_px": 32}
CROP = VIEW | {"centre": ["spinal_canal_stenosis"], "size_mm": 50}
DESCRIPTION: dict[str, Any] = {"unit": "level", "targets": ["spinal_canal_stenosis"], "inputs": [CROP, VIEW]}
SURE = (0.7, 0.2, 0.1)


class Constant(nn.Module):
    """The same probabilities whatever it sees, flat and without `present`."""

    def __init__(self, answer: tuple[float, ...] = SURE) -> None:
        super().__init__()
        self.register_buffer("answer", torch.tensor(answer))

    def forward(self, crop: Tensor, whole: Tensor) -> Tensor:
        return self.answer + 0 * (crop.mean((1, 2, 3)) + whole.mean((1, 2, 3)))[:, None]


class Pooled(nn.Module):
    """Logits (B, 1, 3) of the mean grey, as the kernel wants them."""

    def forward(self, crop: Tensor, whole: Tensor, present: Tensor) -> Tensor:
        grey = crop.mean((1, 2, 3)) * present[:, 0] + whole.mean((1, 2, 3)) * present[:, 1]
        return torch.stack([grey, -grey, 0.5 * grey], 1)[:, None]


def views(batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, 3, 32, 32), torch.randn(batch, 3, 32, 32)]


def put(folder: Path, net: nn.Module, file: str = f"{NAME}.pt", traced: Any = None, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.jit.trace(net.eval(), traced or views(), check_trace=False).save(str(folder / file))
    (folder / f"{NAME}.yaml").write_text(yaml.safe_dump(DESCRIPTION | more))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_runs(folder, load_named(RECIPE, "smoke"))
    return folder


def write_ensemble(path: Path, *ours: str, **more: Any) -> Path:
    """Theirs grades the canal, ours the rest."""
    none = dict.fromkeys(GROUPS, 0.0)
    names = [f"elsewhere/{NAME}", *(f"{RECIPE}/{RECIPE}_{one}" for one in ours)]
    weights = {
        names[0]: none | {"spinal": 1.0},
        **{name: {**none, "foraminal": 1.0, "subarticular": 1.0} for name in names[1:]},
    }
    plain = {group: [1, 1, 1] for group in GROUPS}
    left = [] if ours else ["foraminal", "subarticular"]
    found = {"average": "logits", "weights": weights, "multipliers": plain, "order": names, "left_to_priors": left}
    path.write_text(json.dumps(found | more))
    return path


def package(runs: Path, out: Path, ensemble: Path, *more: object) -> int:
    given = ["--runs", runs, "--out", out, "--profile", "smoke", "--owner", "ada", "--ensemble", ensemble, *more]
    return build_dataset.main([*map(str, given)])


def test_the_kernel_answers_what_their_network_does(
    runs: Path, two_studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = put(tmp_path / "theirs", Constant(), outputs="probabilities", landmarks=RECIPE, licence="MIT")
    assert package(runs, tmp_path / "out", write_ensemble(tmp_path / "found.json", "global_tiny"), "--oof", theirs) == 0
    manifest = read_manifest(tmp_path / "out" / "manifest.json")
    theirs_route = next(route for route in manifest.routes if route.name == f"elsewhere_at_{RECIPE}")
    (part,) = theirs_route.graders
    assert part.name == "elsewhere_their_net_fold0" == manifest.order[0] and len(theirs_route.localisers) == 3
    made = next(one.provenance for one in manifest.artefacts if one.member.name == part.name)
    assert made.published[0].licence == "MIT" and made.published[0].source == f"{NAME}.pt"
    answered = run_here(two_studies, tmp_path / "out", tmp_path / "ran")
    rows = pd.read_csv(tmp_path / "ran" / "submission.csv")
    canal = rows[rows["row_id"].str.contains("spinal")]
    assert len(canal) == 10 and part.name in answered.report["members_used"]
    for name, value in zip(SEVERITIES, SURE, strict=True):
        assert canal[name].to_numpy() == pytest.approx([value] * 10, abs=1e-4)


def test_a_network_a_fold_shares_the_weight_and_needs_no_other_grader(runs: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    for fold in (1, 4):
        put(theirs, Pooled(), f"{NAME}_fold{fold}.pt", [*views(), torch.ones(2, 2)], takes_present=True)
    assert package(runs, tmp_path / "out", write_ensemble(tmp_path / "found.json"), "--oof", theirs) == 0
    manifest = read_manifest(tmp_path / "out" / "manifest.json")
    (route,) = manifest.routes
    assert route.name == "elsewhere" and len(route.localisers) == 3
    assert {one.name: one.weight["spinal"] for one in route.graders} == {
        "elsewhere_their_net_fold1": 0.5,
        "elsewhere_their_net_fold4": 0.5,
    }
    assert len(manifest.artefacts) == 5
    data = (theirs / f"{NAME}_fold1.pt").read_bytes()
    (weights,) = (one.weights for one in manifest.artefacts if one.member.name == "elsewhere_their_net_fold1")
    packed = (tmp_path / "out" / weights.file).read_bytes()[weights.offset : weights.offset + weights.bytes]
    assert packed == data, "what fits as it is keeps its bytes"


def test_what_cannot_be_shipped_is_said_in_one_sentence(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs").mkdir()
    reasons = {f"elsewhere/{NAME}": f"{NAME}.yaml is not there"}
    ensemble = write_ensemble(tmp_path / "found.json", "global_tiny", unshippable=reasons)
    for more, sentence in (
        (
            (),
            f"contains elsewhere/{NAME}, which cannot be shipped: {NAME}.yaml is not there; name the folder",
        ),
        (("--oof", tmp_path / "theirs"), f"{NAME}.yaml is not there: describe unit, inputs and targets in it"),
    ):
        assert package(runs, tmp_path / "out", ensemble, *more) == 1
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1 and not (tmp_path / "out").exists()
    theirs = put(tmp_path / "theirs", Constant(), outputs="probabilities", landmarks="view_fusion")
    assert package(runs, tmp_path / "out", ensemble, "--oof", theirs) == 1
    assert f"{NAME} needs landmarks, and there are no localisers of view_fusion" in capsys.readouterr().err


def test_without_an_ensemble_there_is_nothing_to_take_from_elsewhere(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = put(tmp_path / "theirs", Constant(), outputs="probabilities")
    given = ["--runs", str(runs), "--out", str(tmp_path / "out"), "--profile", "smoke", "--oof", str(theirs)]
    assert build_dataset.main(given) == 1 and not (tmp_path / "out").exists()
    assert "name the file that make ensemble OOF= wrote with ENSEMBLE=" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1


class Batchwise(Constant):
    def forward(self, crop: Tensor, whole: Tensor) -> Tensor:
        return super().forward(crop, whole) * (crop.mean() + 1)


class NotFinite(Constant):
    def forward(self, crop: Tensor, whole: Tensor) -> Tensor:
        return super().forward(crop, whole) / whole.std((1, 2, 3))[:, None]


class Two(Constant):
    def forward(self, crop: Tensor, whole: Tensor) -> Any:
        return super().forward(crop, whole), crop


@pytest.mark.parametrize(
    ("net", "more", "sentence"),
    [
        (Batchwise(), {}, "answers a sample otherwise alone than in a batch: call net.eval\\(\\)"),
        (NotFinite(), {}, "answers numbers that are not finite, to noise or to a missing view of zeros"),
        (Two(), {}, "does not take what its description says|answers a tuple"),
        (Constant((0.7, 0.3)), {}, "does not take what its description says: .*shape"),
        (Constant(), {"inputs": [CROP]}, "does not take what its description says"),
        (Constant(), {"unit": "knee"}, "Their-Net.yaml: unit: "),
        (Constant(), {"targets": ["knee"]}, "target 'knee'"),
        (Constant(), {"weights": "here"}, "Their-Net.yaml: weights: "),
    ],
)
def test_a_network_that_is_not_as_described_is_refused(
    tmp_path: Path, net: nn.Module, more: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UnusableRun, match=sentence) as refused:
        read_networks(put(tmp_path, net, **more), NAME, tmp_path, "smoke")
    assert "\n" not in str(refused.value)


def test_a_pickle_is_no_torchscript(tmp_path: Path) -> None:
    put(tmp_path, Constant())
    torch.save({"state": torch.zeros(2)}, tmp_path / f"{NAME}.pt")
    with pytest.raises(UnusableRun, match="is no TorchScript file: save the network by torch.jit.trace"):
        read_networks(tmp_path, NAME, tmp_path, "smoke")
    (tmp_path / f"{NAME}.pt").unlink()
    with pytest.raises(UnusableRun, match="is not there, nor Their-Net_fold0.pt"):
        read_networks(tmp_path, NAME, tmp_path, "smoke")
