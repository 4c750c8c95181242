"""Loading only what is proven to be what was exported, and answering in the memory there is."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.manifest import Artefact, Manifest
from kernels.lumbar.networks import loading as loaded_module
from kernels.lumbar.networks.loading import LoadedMember, load_fastest, load_member
from kernels.lumbar.networks.weights import WeightsError, checked_bytes, golden_inputs
from kernels.lumbar.problems import MEANINGS
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.device_worker import DeviceWorker
from tests.support.networks.recipe_members import members
from tests.support.networks.tiny_members import PROVENANCE, localiser
from training import networks
from training.fitting.export import export

CPU = torch.device("cpu")


def changed(artefact: Artefact, **weights: object) -> Artefact:
    return artefact.model_copy(update={"weights": artefact.weights.model_copy(update=weights)})


def test_a_loaded_member_answers_ordinary_tensors(tiny_export, artefact):
    loaded = load_member(tiny_export, artefact, CPU)
    *views, present = golden_inputs(artefact.member, 5)
    answer = loaded(views, present)
    np.testing.assert_allclose(answer.numpy().ravel(), artefact.weights.golden_output, rtol=1e-5, atol=1e-6)
    answer += 1  # refused by tensors of inference mode
    assert loaded.member == artefact.member and not answer.requires_grad
    assert loaded([view.double() for view in views], present.double()).dtype == torch.float32


def test_members_share_a_file(tiny_export, artefact, tmp_path):
    data = (tiny_export / "weights.ts").read_bytes()
    (tmp_path / "pack.bin").write_bytes(b"x" * 1000 + data + b"y" * 10)
    packed = changed(artefact, file="pack.bin", offset=1000)
    *views, present = golden_inputs(artefact.member, 6)
    assert torch.equal(
        load_member(tmp_path, packed, CPU)(views, present), load_member(tiny_export, artefact, CPU)(views, present)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "none.ts"}, "No such file"),
        ({"file": "../weights.ts"}, "outside"),
        ({"sha256": "0" * 64}, "another sha256"),
        ({"offset": 7}, "upload is incomplete"),
        (
            {"golden_output": (0.0,) * 6},
            "differs from its golden output by .* on cpu in single precision; 0.001 is allowed",
        ),
        ({"golden_output": (0.0,) * 5}, "answers 6 numbers .* instead of 5"),
        ({"golden_seed": 6}, "differs from its golden output"),
    ],
)
def test_what_is_not_as_exported_is_refused_by_name(tiny_export, artefact, change, message):
    with pytest.raises(WeightsError, match=f"^tiny_split_gru: .*{message}"):
        load_member(tiny_export, changed(artefact, **change), CPU)


def test_a_damaged_archive_is_refused_by_name(tmp_path, artefact):
    data = b"no archive"
    (tmp_path / "weights.ts").write_bytes(data)
    broken = changed(artefact, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(WeightsError, match="^tiny_split_gru: cannot be loaded on cpu"):
        load_member(tmp_path, broken, CPU)


def test_an_archive_stored_in_half_is_loaded_with_its_tolerance(tmp_path, tiny_export, artefact):
    module = torch.jit.load(tiny_export / "weights.ts").half()
    torch.jit.save(module, str(tmp_path / "weights.ts"))
    data = (tmp_path / "weights.ts").read_bytes()
    assert len(data) < 0.7 * artefact.weights.bytes
    smaller = changed(artefact, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    *views, present = golden_inputs(artefact.member, 6)
    for half in (False, True):
        answer = load_member(tmp_path, smaller, CPU, half=half)(views, present)
        torch.testing.assert_close(
            answer, load_member(tiny_export, artefact, CPU)(views, present), atol=1e-2, rtol=1e-2
        )


def test_localisers_are_judged_by_most_confidences_and_places(tmp_path):
    recipe = localiser()
    artefact = export(networks.for_member(recipe), recipe, tmp_path, PROVENANCE, seed=5)
    golden = np.array(artefact.weights.golden_output, np.float32).reshape(2, 2, 4)
    one_jumped = golden.copy()
    one_jumped[0, 0] += (0, 9, 0, 0.4)
    load_member(tmp_path, changed(artefact, golden_output=tuple(one_jumped.ravel().tolist())), CPU)
    three_jumped = golden + np.array([0, 9, 9, 0]) * np.array([1, 1, 1, 0]).reshape(2, 2, 1)
    other_confidences = golden + np.array([0, 0, 0, 0.4]) * np.array([1, 1, 1, 0]).reshape(2, 2, 1)
    for wrong in (three_jumped, other_confidences):
        with pytest.raises(WeightsError, match="tiny_localiser: differs"):
            load_member(tmp_path, changed(artefact, golden_output=tuple(wrong.ravel().tolist())), CPU)


class Narrow(torch.nn.Module):
    """Means of rows; there is no memory for more than three at once."""

    def __init__(self, most: int = 3) -> None:
        super().__init__()
        self.most, self.calls = most, []

    def forward(self, view: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(view))
        if len(view) > self.most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return view.mean((1, 2, 3))[:, None]


def test_without_memory_for_a_batch_it_is_halved_and_that_is_remembered(artefact):
    narrow = Narrow()
    loaded = LoadedMember(artefact, narrow, CPU, half=False)
    view, present = torch.rand(10, 2, 4, 4), torch.ones(10, 1)
    expected = view.mean((1, 2, 3))[:, None]
    torch.testing.assert_close(loaded([view], present), expected)
    assert narrow.calls == [10, 5, 2, 2, 2, 2, 2]
    narrow.calls.clear()
    torch.testing.assert_close(loaded([view], present), expected)
    assert narrow.calls == [2] * 5


def test_without_memory_for_one_row_it_fails(artefact):
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        LoadedMember(artefact, Narrow(0), CPU, half=False)([torch.rand(4, 2, 4, 4)], torch.ones(4, 1))


def test_the_kernels_members_know_what_a_row_takes(tiny_export, artefact):
    assert load_fastest(artefact, checked_bytes(tiny_export, artefact), CPU).golden_s > 0


def as_exported(folder, artefact) -> LoadedMember:
    return LoadedMember(artefact, torch.jit.load(folder / "weights.ts").eval(), CPU, half=False)


def test_on_a_cpu_the_optimised_form_answers_alike(tiny_export, artefact):
    loaded, plain = load_member(tiny_export, artefact, CPU), as_exported(tiny_export, artefact)
    assert loaded.unoptimised == "" and "batch_norm" not in str(loaded.module.graph)
    *views, present = golden_inputs(artefact.member, 6, 7)
    present[3:, 1] = 0
    torch.testing.assert_close(loaded(views, present), plain(views, present), atol=1e-5, rtol=1e-5)


def test_an_answer_does_not_depend_on_the_calls_before(exported):
    for entry in members("smoke", "grader")[:3] + members("smoke", "localiser")[:3]:
        folder, artefact = exported(entry)
        first, other = (load_member(folder, artefact, CPU) for _ in range(2))
        *views, present = golden_inputs(artefact.member, 6, 4)
        expected = first(views, present)
        for rows in (4, 1, 3, 4, 2, 4):
            answer = other([view[:rows] for view in views], present[:rows])
            torch.testing.assert_close(answer, expected[:rows], atol=1e-4, rtol=1e-5)
            assert rows < 4 or torch.equal(answer, expected), artefact.member.name


def add_one(module: torch.jit.ScriptModule) -> torch.nn.Module:
    class Wrong(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return module(*inputs) + 1

    return Wrong()


def fail(module: torch.jit.ScriptModule) -> torch.nn.Module:
    raise RuntimeError("no such layout\nand a page more")


@pytest.mark.parametrize(
    ("optimise", "reason"), [(add_one, "differs from its golden output"), (fail, "no such layout")]
)
def test_what_cannot_be_optimised_runs_as_exported_and_says_why(tiny_export, artefact, monkeypatch, optimise, reason):
    *views, present = golden_inputs(artefact.member, 6)
    plain = as_exported(tiny_export, artefact)(views, present)
    monkeypatch.setattr(torch.jit, "optimize_for_inference", optimise)
    loaded = load_member(tiny_export, artefact, CPU)
    assert reason in loaded.unoptimised and "\n" not in loaded.unoptimised
    assert torch.equal(loaded(views, present), plain)
    manifest = Manifest(name="m", priors=public_priors(), artefacts=(artefact,), routes=())
    worker = DeviceWorker(manifest, tiny_export, CPU, Clock(1e9))
    worker.load([artefact.member.name])
    assert [(problem.where, problem.kind) for problem in worker.refused] == [("tiny_split_gru", "not-optimised")]
    assert reason in worker.refused[0].detail and worker.members and MEANINGS["not-optimised"]


@pytest.mark.parametrize(("error", "half"), [(0.004, True), (0.04, False)])
def test_on_a_gpu_half_precision_is_taken_where_it_answers_alike(tiny_export, artefact, monkeypatch, error, half):
    """The CPU stands in for the GPU, and an error for what half precision loses."""
    load = loaded_module._load_archive
    shown = torch.device("cuda")

    class Rounded(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module, error: float) -> None:
            super().__init__()
            self.inner, self.error = inner, error

        def half(self) -> Rounded:
            return Rounded(self.inner, error)

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.inner(*(one.float() for one in inputs)) + self.error

    monkeypatch.setattr(loaded_module, "_load_archive", lambda archive, device: Rounded(load(archive, CPU), 0.0))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, dtype, **more: self.type(dtype))
    loaded = load_fastest(artefact, checked_bytes(tiny_export, artefact), shown)
    assert (loaded.half, loaded.precision) == (half, "half" if half else "single")
    assert loaded.refused == "" if half else "in half precision; 0.01 is allowed" in loaded.refused
