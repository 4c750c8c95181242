"""The kernel's rounds: the answers of the plain way, in whatever batches, on however many devices, whatever breaks."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kernels.lumbar import predict
from kernels.lumbar.inputs.member_inputs import InputCache
from kernels.lumbar.labels import GROUPS, ROWS, SEVERITIES, group_of
from kernels.lumbar.networks.loading import LoadedMember
from kernels.lumbar.networks.weights import MANIFEST_FILE, read_manifest
from kernels.lumbar.run import read_ahead as reading
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.competition import read_series_table
from kernels.lumbar.run.device_worker import DeviceWorker
from kernels.lumbar.run.in_progress import InProgress
from kernels.lumbar.run.read_ahead import read_ahead
from kernels.lumbar.run.results import Results
from kernels.lumbar.run.rounds import DevicesLost, Resources, Rounds
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.faults.fault_runs import Answered, answered, assert_same
from tests.support.faults.held_clock import HeldClock, hold_clock
from training.evaluation.predictor import Predictor

STUDIES = 5
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_foreign_dataset(folder, studies=1, seed=21, test_studies=STUDIES)
    return folder


def run(data: Path, weights: Path, out: Path, *more: str) -> Answered:
    given = ["--competition", str(data), "--weights", str(weights), "--out", str(out), *more]
    return answered(predict.main(given), data, out)


@pytest.fixture(scope="module")
def plain(data: Path, seeing: Path, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    return run(data, seeing, tmp_path_factory.mktemp("plain"))


def studies_of(data: Path) -> list[str]:
    return sorted(path.name for path in (data / "test_images").iterdir())


def rounds_of(data: Path, weights: Path, limit_s: float = 1e6, devices: int = 1) -> Rounds:
    manifest = read_manifest(weights / MANIFEST_FILE)
    series = read_series_table(data / "test_series_descriptions.csv").series
    resources = Resources(Clock(limit_s), [CPU] * devices, InProgress())
    return Rounds(Results(manifest, studies_of(data)), weights, data / "test_images", series, resources)


def test_rounds_give_what_all_members_at_once_give(data, seeing, plain):
    predictor = Predictor(read_manifest(seeing / MANIFEST_FILE), seeing, CPU)
    series = read_series_table(data / "test_series_descriptions.csv").series
    for study in read_ahead(data / "test_images", series, studies_of(data), Clock(1e6)):
        expected = predictor.predict(study, Clock(1e6)).rows
        assert np.array_equal(plain.rows(study.study_id), expected / expected.sum(1, keepdims=True))


def test_the_first_round_answers_every_condition_and_no_study_waits_for_the_second(data, seeing):
    rounds = rounds_of(data, seeing)
    answered_after: list[set[str]] = []
    rounds.run(lambda studies: answered_after.append(set(rounds.results.graded())))
    assert len(rounds.done) > 1 and rounds.done[0].studies == STUDIES
    assert len(answered_after[STUDIES - 1]) == STUDIES
    assert {group_of(row) for row in ROWS} == set(GROUPS)
    assert sorted(name for one in rounds.done for name in one.networks) == sorted(job[1] for job in rounds.results.jobs)


@pytest.mark.parametrize("size", ["3", "8"])
def test_batches_change_no_answer_beyond_rounding(data, seeing, plain, tmp_path, size):
    found = run(data, seeing, tmp_path, "--batch", size)
    for study in studies_of(data):
        np.testing.assert_allclose(found.rows(study), plain.rows(study), atol=1e-5)


def test_a_spoilt_study_changes_no_bit_of_the_others_in_its_batch(data, seeing, tmp_path):
    victim, *others = studies_of(data)
    whole = run(data, seeing, tmp_path / "whole", "--batch", "8")
    spoilt = Path(shutil.copytree(data, tmp_path / "spoilt"))
    for series in sorted((spoilt / "test_images" / victim).iterdir())[:-1]:
        shutil.rmtree(series)
    assert_same(run(spoilt, seeing, tmp_path / "out", "--batch", "8"), whole, *others)


def test_two_workers_write_the_bytes_of_one(data, seeing, plain, tmp_path):
    found = run(data, seeing, tmp_path, "--devices", "cpu,cpu")
    pd.testing.assert_frame_equal(found.frame, plain.frame, check_exact=True)
    assert found.report["device"] == "cpu, cpu"


# --- what breaks


def break_one_worker(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """So many batches end their worker thread."""
    work, lock, left = DeviceWorker.work, threading.Lock(), [times]

    def breaking(self: DeviceWorker, *given: object) -> object:
        with lock:
            left[0] -= 1
        if left[0] >= 0:
            raise OSError("the device has fallen off the bus")
        return work(self, *given)

    monkeypatch.setattr(DeviceWorker, "work", breaking)


def test_what_a_lost_device_had_in_hand_is_done_by_another(data, seeing, plain, tmp_path, monkeypatch):
    break_one_worker(monkeypatch, times=1)
    found = run(data, seeing, tmp_path, "--devices", "cpu,cpu")
    pd.testing.assert_frame_equal(found.frame, plain.frame, check_exact=True)
    (problem,) = (one for one in found.report["problems"] if one["kind"] == "device-lost")
    assert "fallen off the bus" in problem["detail"]


def test_without_any_device_the_priors_stand_and_a_supervised_kernel_asks_to_be_begun_anew(
    data, seeing, tmp_path, monkeypatch
):
    break_one_worker(monkeypatch, times=99)
    with pytest.raises(DevicesLost, match="fallen off the bus"):
        rounds_of(data, seeing).run(lambda studies: None)
    found = run(data, seeing, tmp_path / "alone")
    assert found.report["problem_counts"]["devices-lost"] == 1 and found.report["studies"]["graded"] == 0
    monkeypatch.setenv("LUMBAR_RESTART", "0")
    given = ["--competition", str(data), "--weights", str(seeing), "--out", str(tmp_path / "watched")]
    assert predict.main(given) == 4
    assert (tmp_path / "watched" / "submission.csv").is_file()


@pytest.mark.parametrize("more", [(), ("--batch", "3")])
def test_a_study_whose_reading_never_ends_costs_itself_alone(data, seeing, plain, tmp_path, monkeypatch, more):
    victim, *others = studies_of(data)
    read, never = reading.read_study, threading.Event()

    def stalling(folder: Path, study: str, series: object) -> object:
        if study == victim:
            never.wait()
        return read(folder, study, series)

    monkeypatch.setattr(reading, "read_study", stalling)
    found = run(data, seeing, tmp_path, "--patience", "3", *more)
    never.set()
    for study in others:
        np.testing.assert_allclose(found.rows(study), plain.rows(study), atol=1e-5)
    assert "reading-stalled" in found.problems(victim)
    assert set(found.report["fallbacks"]["studies"]) == {victim}


def test_a_worker_that_hangs_leaves_its_batch_and_all_later_rounds_to_the_other(
    data, seeing, plain, tmp_path, monkeypatch
):
    work, lock, never, left = DeviceWorker.work, threading.Lock(), threading.Event(), [1]

    def hanging(self: DeviceWorker, *given: object) -> object:
        with lock:
            left[0] -= 1
        if left[0] == 0:
            never.wait()
        return work(self, *given)

    monkeypatch.setattr(DeviceWorker, "work", hanging)
    found = run(data, seeing, tmp_path, "--devices", "cpu,cpu", "--patience", "4")
    never.set()
    pd.testing.assert_frame_equal(found.frame, plain.frame, check_exact=True)
    assert [one["kind"] for one in found.report["problems"] if one["where"] == "cpu"] == ["device-lost"]


def test_without_memory_for_the_views_of_a_batch_its_studies_are_shown_one_by_one(
    data, seeing, plain, tmp_path, monkeypatch
):
    column = InputCache._column

    def narrow(self: InputCache, *given: object) -> object:
        if len(self.studies) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return column(self, *given)

    monkeypatch.setattr(InputCache, "_column", narrow)
    found = run(data, seeing, tmp_path, "--batch", "4")
    pd.testing.assert_frame_equal(found.frame, plain.frame, check_exact=True)


@pytest.mark.parametrize("name", ["cpu,nonsense", "nonsense", "cuda:7"])
def test_devices_that_are_none_are_named_and_done_without(data, seeing, plain, tmp_path, name):
    found = run(data, seeing, tmp_path, "--devices", name, "--batch", "-3")
    pd.testing.assert_frame_equal(found.frame, plain.frame, check_exact=True)
    assert found.report["problem_counts"]["device-unusable"] == 1


# --- the clock


DROPPED = {"member-dropped", "fold-dropped", "tta-dropped", "out-of-time"}
# How much later than its limit a kernel may end here: a busy machine may take longer to write the last files than was
# kept back for them.  Whoever waits for what never comes is later than that.
LATE_S = 20.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HeldClock:
    return hold_clock(monkeypatch)


def slow_down(monkeypatch: pytest.MonkeyPatch, wait: Callable[[], object]) -> None:
    """Every forward waits first."""
    forward = LoadedMember._forward

    def slow(self: LoadedMember, *inputs: torch.Tensor) -> torch.Tensor:
        wait()
        return forward(self, *inputs)

    monkeypatch.setattr(LoadedMember, "_forward", slow)


def test_slow_networks_answer_everything_in_time_and_what_was_dropped_is_said(
    data, seeing, tmp_path, monkeypatch, clock
):
    slow_down(monkeypatch, lambda: clock.sleep(0.1))
    found = run(data, seeing, tmp_path, "--time-limit", "6")
    assert 3 < clock.monotonic() < 6 and found.report["studies"]["graded"] == STUDIES
    assert DROPPED & found.report["problem_counts"].keys() and "out-of-time" not in found.report["problem_counts"]


def test_very_slow_networks_end_in_time_and_what_was_dropped_is_said(data, seeing, tmp_path, monkeypatch):
    slow_down(monkeypatch, lambda: time.sleep(0.8))
    started = time.monotonic()
    found = run(data, seeing, tmp_path, "--time-limit", "6")
    assert time.monotonic() - started < 6 + LATE_S
    counts = found.report["problem_counts"]
    assert DROPPED & counts.keys() and counts.get("out-of-time", 0) == (found.report["studies"]["graded"] < STUDIES)


def test_networks_that_never_answer_end_in_time_with_priors(data, seeing, tmp_path, monkeypatch):
    never = threading.Event()
    slow_down(monkeypatch, never.wait)
    started = time.monotonic()
    found = run(data, seeing, tmp_path, "--time-limit", "6")
    never.set()
    assert time.monotonic() - started < 6 + LATE_S and found.report["studies"]["graded"] == 0
    assert found.report["problem_counts"]["out-of-time"] == 1


def test_a_disk_that_answers_nothing_ends_in_time_with_priors(data, seeing, tmp_path, monkeypatch):
    never = threading.Event()
    read = reading.read_study
    monkeypatch.setattr(reading, "read_study", lambda *given: never.wait() and read(*given))
    started = time.monotonic()
    found = run(data, seeing, tmp_path, "--time-limit", "5")
    never.set()
    assert time.monotonic() - started < 5 + LATE_S and found.report["studies"]["graded"] == 0
    assert found.report["problem_counts"]["out-of-time"] == 1


@pytest.mark.parametrize("limit_s", ["-5", "0", "2.3"])
def test_a_clock_that_is_nearly_over_leaves_a_complete_file(data, seeing, tmp_path, limit_s):
    found = run(data, seeing, tmp_path, "--time-limit", limit_s)
    assert list(found.frame.columns) == ["row_id", *SEVERITIES]
    assert found.report["problem_counts"].keys() & {"out-of-time", "member-dropped"}


def test_what_was_slow_for_a_moment_is_made_up_for_in_the_end(data, seeing, plain, tmp_path, monkeypatch, clock):
    left = iter(range(12))
    slow_down(monkeypatch, lambda: clock.sleep(0.4) if next(left, None) is not None else None)
    found = run(data, seeing, tmp_path, "--time-limit", "20")
    pd.testing.assert_frame_equal(found.frame, plain.frame, check_exact=True)
    assert "tta-dropped" not in found.report["problem_counts"]
