"""Every architecture as a file: equal to the network, tied to no device, at home in a bare torch."""

from __future__ import annotations

import hashlib
import io
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from kernels.lumbar.manifest import Artefact
from kernels.lumbar.networks.loading import load_member
from kernels.lumbar.networks.weights import golden_inputs
from tests.support.networks.bare_torch import bare_answers
from tests.support.networks.tiny_members import PROVENANCE, grader, localiser
from tests.training.networks.test_networks import MEMBERS
from training import networks
from training.fitting.export import ExportError, baked_devices, export, gflops_of, gflops_per_study, parity_inputs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder, artefact and network of a member, each exported once."""
    made = {}

    def get(recipe):
        key = recipe.model_dump_json()
        if key not in made:
            torch.manual_seed(1)
            net = networks.for_member(recipe)
            folder = tmp_path_factory.mktemp("exported")
            made[key] = folder, export(net, recipe, folder, PROVENANCE, seed=11), net.eval()
        return made[key]

    return get


@pytest.mark.parametrize("recipe", MEMBERS)
def test_archive_equals_the_network(exported, recipe):
    folder, artefact, net = exported(recipe)
    assert Artefact.model_validate_json((folder / "artefact.json").read_text()) == artefact
    data = (folder / "weights.ts").read_bytes()
    assert len(data) == artefact.weights.bytes and hashlib.sha256(data).hexdigest() == artefact.weights.sha256
    assert baked_devices(data) == []
    archive = torch.jit.load(io.BytesIO(data)).eval()
    # Flat, and what moves with .to and .half is all that the network has of it: nothing has become a constant.
    assert list(archive.children()) == []
    assert [value.shape for value in archive.parameters()] == [value.shape for value in net.parameters()]
    assert [value.shape for value in archive.buffers()] == [value.shape for value in net.buffers()]
    loaded = load_member(folder, artefact, CPU)
    for batch in (1, 3, 17):
        *views, present = parity_inputs(recipe.member, 2, batch)
        with torch.no_grad(), torch.jit.optimized_execution(False):
            expected, answer = net(*views, present), loaded(views, present)
            torch.testing.assert_close(archive(*views, present), expected, atol=1e-5, rtol=1e-5)
        # Where a map has no peak (confidence 0), rounding alone places the point, by whole pixels in other precision.
        places = expected[..., 3] > 0 if recipe.member.role == "localiser" else slice(None)
        torch.testing.assert_close(answer[places], expected[places], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(answer[..., -1], expected[..., -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recipe", MEMBERS)
def test_archive_works_in_half(exported, recipe):
    folder, artefact, net = exported(recipe)
    *views, present = golden_inputs(recipe.member, 4)
    answer = load_member(folder, artefact, CPU, half=True)(views, present)
    assert answer.dtype == torch.float32 and answer.isfinite().all()
    if recipe.member.role == "grader":
        with torch.no_grad():
            torch.testing.assert_close(answer, net(*views, present), atol=2e-2, rtol=2e-2)


def test_archives_load_in_a_bare_torch(exported, tmp_path):
    made = [exported(param.values[0])[:2] for param in MEMBERS]
    answers = bare_answers([(folder, golden_inputs(a.member, a.weights.golden_seed)) for folder, a in made], tmp_path)
    for answer, (_, artefact) in zip(answers, made, strict=True):
        np.testing.assert_allclose(answer.ravel(), artefact.weights.golden_output, rtol=1e-5, atol=1e-5)


def test_export_leaves_the_network_alone_and_repeats_itself(tmp_path):
    recipe = grader()
    net = networks.for_member(recipe).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first = export(net, recipe, tmp_path / "1", PROVENANCE, seed=1)
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    second = export(net, recipe, tmp_path / "2", PROVENANCE, seed=1)
    assert first.weights.golden_output == second.weights.golden_output
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == ["artefact.json", "weights.ts"]
    assert first.provenance.torch_version == torch.__version__


class Bakes(nn.Module):
    """Makes a tensor on a fixed device."""

    def forward(self, *inputs):
        return inputs[0].mean((1, 2, 3))[:, None, None] + torch.zeros(1, 1, 3, device=inputs[0].device)


class ForgetsBatch(nn.Module):
    """Remembers the size of the batch that it was traced with."""

    def forward(self, *inputs):
        return inputs[0].mean((1, 2, 3))[:, None, None].repeat(1, 1, 3) * float(inputs[0].shape[0])


class FixesBatch(nn.Module):
    """Reshapes to the size of the batch that it was traced with."""

    def forward(self, *inputs):
        return inputs[0].mean((1, 2, 3)).reshape(int(inputs[0].shape[0]), 1, 1).repeat(1, 1, 3)


class LargeBatchesElsewhere(nn.Module):
    """Takes another branch for a large batch."""

    def forward(self, *inputs):
        mean = inputs[0].mean((1, 2, 3))[:, None, None].repeat(1, 1, 3)
        return mean * 2 if inputs[0].shape[0] >= 12 else mean


class Untraceable(nn.Module):
    def forward(self, *inputs):
        raise KeyError("no such view")


class NotFinite(nn.Module):
    def forward(self, *inputs):
        return inputs[0].mean((1, 2, 3))[:, None, None].repeat(1, 1, 3) / 0


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Bakes, "tied to a device"),
        (ForgetsBatch, "at batch 1.*write its forward without Python numbers"),
        (FixesBatch, "at batch 1 .*write its forward without"),
        (LargeBatchesElsewhere, "at batch 17.*or branches that depend on the batch"),
        (Untraceable, "cannot be traced .KeyError: 'no such view'.: write"),
        (NotFinite, "finite"),
    ],
)
def test_what_would_not_work_on_kaggle_is_refused(tmp_path, broken, message):
    with pytest.raises(ExportError, match=f"tiny_split_gru: .*{message}"):
        export(broken(), grader(), tmp_path, PROVENANCE, seed=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("most_gflops", "tried"), [(0.0, [1, 3]), (100.0, [1, 3, 7, 17])])
def test_large_batches_are_tried_where_a_pass_costs_little(tmp_path, monkeypatch, most_gflops, tried):
    batches = []
    monkeypatch.setattr("training.fitting.export.MOST_GFLOPS", most_gflops)
    monkeypatch.setattr(
        "training.fitting.export.parity_inputs", lambda *given: batches.append(given[-1]) or parity_inputs(*given)
    )
    export(networks.for_member(grader()), grader(), tmp_path, PROVENANCE, seed=1)
    assert batches == tried


def test_baked_devices_reads_code_only():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/code/__torch__/net.py", 'a = 1\n  h = torch.zeros([2], device=torch.device("cpu"))\n')
        archive.writestr("archive/data/notes.py", 'torch.device("cpu")')
    assert len(baked_devices(buffer.getvalue())) == 1


def test_gflops_count_units_and_flips():
    recipe = localiser(options={"encoder": "tu-test_resnet", "decoder_channels": 8})
    with torch.no_grad():
        one = gflops_of(networks.for_member(recipe).eval(), golden_inputs(recipe.member, 0, 1))
    once = gflops_per_study(one, recipe.member.model_copy(update={"unit": "study"}))
    assert once > 0
    per_level = gflops_per_study(one, recipe.member)
    flipped = gflops_per_study(one, recipe.member.model_copy(update={"tta": ("mirror",)}))
    assert per_level == pytest.approx(5 * once, abs=1e-3) and flipped == pytest.approx(2 * per_level, abs=1e-3)


def test_a_newer_torch_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "3.0.1+cpu")
    with pytest.warns(UserWarning, match="torch 3.0.1"):
        export(networks.for_member(grader()), grader(), tmp_path, PROVENANCE, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("size_px", [64, 224])
@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "convnext_nano"])
def test_published_backbones_export(tmp_path, backbone, size_px):
    recipe = grader(backbone=backbone, size_px=size_px, options={"share": [0, 0]})
    artefact = export(networks.for_member(recipe), recipe, tmp_path, PROVENANCE, seed=1)
    load_member(tmp_path, artefact, CPU)


class Chaotic(nn.Module):
    """A localiser whose rows are chance wherever an image has one of some mean greys."""

    def __init__(self, greys: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("greys", greys)

    def forward(self, view: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        grey = view.mean((1, 2, 3))
        near = ((grey[:, None] - self.greys).abs() < 3e-4).any(1)
        row = 5 + near * 20 * torch.frac(1e5 * grey)
        one = torch.ones_like(row)
        point = torch.stack([one, row, 5 * one, 0.5 * present[:, 0]], 1)
        return point[:, None].repeat(1, 2, 1)


def test_golden_answers_bear_the_rounding_of_other_devices(tmp_path):
    recipe = localiser()
    view, _ = golden_inputs(recipe.member, 1)
    greys = view.mean((1, 2, 3))
    assert export(Chaotic(greys), recipe, tmp_path / "chance", PROVENANCE, seed=1).weights.golden_seed > 1
    assert export(Chaotic(greys + 9), recipe, tmp_path / "steady", PROVENANCE, seed=1).weights.golden_seed == 1
