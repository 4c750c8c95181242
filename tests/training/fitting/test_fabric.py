"""One fit on several devices, in several rounds a batch, in other precisions: the weights of one device."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import ROOT
from tests.support.networks.fabric_ranks import CPU, SHARED
from tests.support.networks.tiny_members import TinySamples, grader, greys
from training.data.samples.batch import Batch, Origin
from training.fitting import FitError
from training.fitting.batch_parts import part_of
from training.fitting.device import Device, deterministic
from training.fitting.loop import fit


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that torchrun had started."""
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "support" / "networks" / "fabric_ranks.py"), str(out)],
        env=environment,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return out


def weights(shared: Path, rank: int) -> dict[str, dict[str, torch.Tensor]]:
    return torch.load(shared / f"weights{rank}.pt", weights_only=True)  # type: ignore[no-any-return]


def column(folder: Path, name: str) -> list[float]:
    with (folder / "history.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_two_processes_with_half_of_each_batch_give_the_weights_of_one(shared, tmp_path):
    alone = fit(SHARED["grader"], TinySamples(SHARED["grader"]), tmp_path, CPU, seed=5)
    together = weights(shared, 0)["grader"]
    for name, value in alone.net.state_dict().items():
        torch.testing.assert_close(together[name], value, atol=2e-6, rtol=1e-5, msg=name)
    for name in ("train_loss", "validation_loss"):
        expected = [getattr(record, name) for record in alone.history]
        assert column(shared / "grader", name) == pytest.approx(expected, rel=1e-5)


def test_processes_end_with_the_same_weights_though_each_normalises_its_own_part(shared):
    for name, first in weights(shared, 0).items():
        second = weights(shared, 1)[name]
        assert all(torch.equal(first[key], second[key]) for key in first), name
    assert column(shared / "localiser", "median_error_px")[0] > 0


def test_only_the_first_process_writes(shared):
    names = sorted(path.name.partition(".tfevents")[0] for path in (shared / "grader").iterdir())
    assert names == ["checkpoint.pt", "curves.png", "events.out", "history.csv"]


def test_sigterm_to_one_process_stops_all_and_nothing_is_lost(shared):
    said = {(shared / f"said{rank}.txt").read_text() for rank in (0, 1)}
    assert said == {"tiny_split_gru was stopped after step 20 of 22; the same command resumes there"}
    first = weights(shared, 0)
    assert all(torch.equal(value, first["stopped"][name]) for name, value in first["undisturbed"].items())
    losses = [column(shared / name, "train_loss") for name in ("undisturbed", "stopped")]
    assert losses[0] == losses[1]


def test_a_batch_learned_from_in_rounds_gives_the_same_weights(tmp_path):
    nets = []
    for rounds in (1, 3):
        recipe = grader(backbone="test_convnext", batch_size=6, learning_rate=1e-4, accumulate=rounds)
        nets.append(fit(recipe, TinySamples(recipe), tmp_path / str(rounds), CPU, seed=5).net.state_dict())
    for name, value in nets[0].items():
        torch.testing.assert_close(nets[1][name], value, atol=2e-6, rtol=1e-5, msg=name)


def test_more_rounds_than_samples_are_refused(tmp_path):
    recipe = grader(batch_size=4, accumulate=5)
    with pytest.raises(FitError, match="a batch of 4 samples has no 5 parts: use fewer devices, or a smaller acc"):
        fit(recipe, TinySamples(recipe), tmp_path, CPU, seed=5)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_make_up_the_batch(count):
    batch = greys(grader(), 7, torch.Generator().manual_seed(1))
    parts = [part_of(batch, number, count) for number in range(count)]
    assert torch.equal(torch.cat([part.target for part in parts]), batch.target)
    assert torch.equal(torch.cat([part.views[1] for part in parts]), batch.views[1])
    sizes = [len(part.present) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_studies_stay_whole_and_are_counted_anew():
    studies = torch.tensor([0, 0, 1, 1, 1, 2])
    batch = Batch(
        (torch.arange(6.0)[:, None],), torch.ones(6, 1), torch.arange(6), origin=Origin(studies, torch.zeros(1))
    )
    parts = [part_of(batch, number, 2, whole_studies=True) for number in (0, 1)]
    assert [part.target.tolist() for part in parts] == [[0, 1], [2, 3, 4, 5]]
    assert [part.known_origin.studies.tolist() for part in parts] == [[0, 0], [0, 0, 0, 1]]
    with pytest.raises(FitError, match="3 studies has no 4 parts"):
        part_of(batch, 0, 4, whole_studies=True)


def test_the_variables_of_a_clusters_job_make_nobody_wait_for_others(monkeypatch):
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    device = Device(CPU, "float16")
    assert (device.ranks, device.rank, device.device) == (1, 0, CPU) and device.first


@pytest.mark.parametrize(
    ("precision", "mixed_on_cpu", "expected"),
    [("float16", True, torch.bfloat16), ("float16", False, torch.float32), ("float32", True, torch.float32)],
)
def test_a_cpu_computes_in_bfloat16_only_where_both_recipe_and_caller_say_so(precision, mixed_on_cpu, expected):
    device = Device(CPU, precision, mixed_on_cpu=mixed_on_cpu)
    with device.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
    assert device.is_mixed == (expected != torch.float32)


@pytest.mark.filterwarnings("ignore:.*GradScaler is enabled.*")
def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(FitError, match="torchrun started 4 processes on a machine with 2 GPUs"):
        Device(torch.device("cuda"), "float16")


def test_what_has_no_deterministic_form_is_named():
    with pytest.raises(FitError, match="^grid_backward .*: set fitting.optimisation.deterministic: false$"):
        with deterministic(True):
            assert torch.are_deterministic_algorithms_enabled()
            raise RuntimeError("grid_backward does not have a deterministic implementation, but you set 'torch.use_")
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="something else"), deterministic(True):
        raise RuntimeError("something else")
