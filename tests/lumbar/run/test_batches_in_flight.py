"""Several batches in flight on a device: the same bytes, forwards one at a time, and the time counted once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from kernels.lumbar import predict
from kernels.lumbar.networks.loading import LoadedMember
from kernels.lumbar.run import device_worker, kept_studies
from kernels.lumbar.run import read_ahead as reading
from kernels.lumbar.run.device_worker import DeviceWorker
from tests.lumbar.run.test_rounds import CPU, STUDIES, rounds_of, run, studies_of
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.faults.fault_runs import Answered, answered
from tests.support.faults.held_clock import HeldClock, hold_clock


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_foreign_dataset(folder, studies=1, seed=21, test_studies=STUDIES)
    return folder


@pytest.fixture(scope="module")
def plain(data: Path, seeing: Path, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    """Of one batch after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_worker, "batches_in_flight", lambda device: 1)
        return run(data, seeing, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HeldClock:
    return hold_clock(monkeypatch)


@pytest.mark.parametrize("more", [("--batch", "1"), ("--batch", "3")])
@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_batches_in_flight_change_no_byte(data, seeing, tmp_path, monkeypatch, more, devices):
    found = run(data, seeing, tmp_path / "found", "--devices", devices, *more)
    monkeypatch.setattr(device_worker, "batches_in_flight", lambda device: 1)
    alone = run(data, seeing, tmp_path / "alone", *more)
    for name in ("submission.csv", "landmarks.csv"):
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert found.report["problems"] == alone.report["problems"], "the batch that ended first leaves no trace"


class Meter:
    """How many calls ran at the same time at most."""

    def __init__(self) -> None:
        self.now, self.most, self._lock = 0, 0, threading.Lock()

    def around(self, call: Callable[..., object], wait_s: float) -> Callable[..., object]:
        def metered(*given: object) -> object:
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(wait_s)
            try:
                return call(*given)
            finally:
                with self._lock:
                    self.now -= 1

        return metered


@pytest.mark.parametrize(
    ("devices", "cores", "batches", "forwards"), [("cpu", 2, 2, 1), ("cpu", 1, 1, 1), ("cpu,cpu", 2, 4, 2)]
)
def test_forwards_run_one_at_a_time_on_a_device_and_all_else_of_several_batches_beside_them(
    data, seeing, tmp_path, monkeypatch, devices, cores, batches, forwards
):
    at_work, in_forward = Meter(), Meter()
    monkeypatch.setattr(device_worker.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(DeviceWorker, "work", at_work.around(DeviceWorker.work, 0.05))
    monkeypatch.setattr(DeviceWorker, "load", loaded_before(in_forward, monkeypatch))
    run(data, seeing, tmp_path, "--devices", devices)
    assert (
        min(batches, STUDIES) - (batches > 2) <= at_work.most <= batches
    )  # of four one may end before the last begins
    assert in_forward.most == forwards or (forwards == 2 and in_forward.most == 1)


def loaded_before(in_forward: Meter, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """DeviceWorker.load, after which forwards are metered: loading verifies a network beside the forwards of others."""
    load, forward = DeviceWorker.load, LoadedMember._forward
    metered = in_forward.around(forward, 0.0)

    def counted(self: DeviceWorker, names: set[str]) -> None:
        monkeypatch.setattr(LoadedMember, "_forward", forward)
        load(self, names)
        monkeypatch.setattr(LoadedMember, "_forward", metered)

    return counted


def test_two_batches_of_one_device_count_as_the_time_that_passed(data, seeing, tmp_path, monkeypatch, clock):
    in_work, forwards = threading.local(), []
    work, forward = DeviceWorker.work, LoadedMember._forward

    def working(self: DeviceWorker, *given: object) -> object:
        in_work.is_so = True
        try:
            return work(self, *given)
        finally:
            in_work.is_so = False

    def slow(self: LoadedMember, *inputs: torch.Tensor) -> torch.Tensor:
        if getattr(in_work, "is_so", False):
            time.sleep(0.002)  # time for the other batches to wait for this one
            clock.sleep(1.0)
            forwards.append(self.member.name)
        return forward(self, *inputs)

    monkeypatch.setattr(DeviceWorker, "work", working)
    monkeypatch.setattr(LoadedMember, "_forward", slow)
    found = run(data, seeing, tmp_path, "--time-limit", "1e6")
    counted_s = {name: s for name, s in found.report["seconds"].items() if name not in ("total", "read")}
    assert sum(counted_s.values()) == pytest.approx(len(forwards), abs=0.1) == pytest.approx(clock.monotonic(), abs=0.1)
    graders = {job[1] for job in rounds_of(data, seeing).results.jobs}
    for name in graders:  # localisers share the seconds of the whole localisation
        assert counted_s[name] == pytest.approx(forwards.count(name)), "waiting for another network is not its own time"


def test_what_is_in_flight_counts_as_work_to_be_done(data, seeing, monkeypatch):
    seen: list[tuple[int, int]] = []
    rounds = rounds_of(data, seeing)
    effort = rounds.schedule.effort

    def looking(now: object, studies: int, later: object, unlocated: object, at_once: int, golden: object) -> object:
        seen.append((studies, at_once))
        return effort(now, studies, later, unlocated, at_once, golden)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds.schedule, "effort", looking)
    gate = threading.Barrier(2)
    work, left = DeviceWorker.work, iter(range(2))

    def together(self: DeviceWorker, *given: object) -> object:
        if next(left, None) is not None:
            gate.wait(60)
        return work(self, *given)

    monkeypatch.setattr(DeviceWorker, "work", together)
    monkeypatch.setattr(device_worker.os, "cpu_count", lambda: 2)
    rounds.workers = [DeviceWorker(rounds.results.manifest, seeing, CPU, rounds.clock)]
    rounds.run(lambda studies: None)
    assert [studies for studies, _ in seen[:2]] == [STUDIES] * 2, "neither is done yet"
    assert seen[1][1] == 2 and all(1 <= at_once <= 2 for _, at_once in seen)


def read_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The studies that are read from now on."""
    names: list[str] = []
    read = reading.read_study
    monkeypatch.setattr(
        reading, "read_study", lambda folder, study, series: names.append(study) or read(folder, study, series)
    )
    return names


def test_every_study_is_read_once_for_all_rounds_where_memory_holds_it(data, seeing, plain, tmp_path, monkeypatch):
    names = read_in(monkeypatch)
    found = run(data, seeing, tmp_path / "kept")
    assert sorted(names) == studies_of(data) and len(found.report["rounds"]) > 1
    pd.testing.assert_frame_equal(found.frame, plain.frame, check_exact=True)
    assert found.report["problems"] == plain.report["problems"]
    monkeypatch.setattr(kept_studies, "KEPT_BYTES", 0)
    names.clear()
    found = run(data, seeing, tmp_path / "read")
    assert len(names) == len(found.report["rounds"]) * STUDIES
    pd.testing.assert_frame_equal(found.frame, plain.frame, check_exact=True)
    assert found.report["problems"] == plain.report["problems"]


def hang(monkeypatch: pytest.MonkeyPatch, victim: str) -> threading.Event:
    """A batch with the victim hangs outside of all forwards until the event."""
    work, never = DeviceWorker.work, threading.Event()

    def hanging(self: DeviceWorker, lane: object, batch: reading.StudyBatch, *given: object) -> object:
        if victim in batch.names:
            never.wait()
        return work(self, lane, batch, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(DeviceWorker, "work", hanging)
    monkeypatch.setattr(device_worker.os, "cpu_count", lambda: 2)
    return never


def test_a_batch_that_hangs_is_noticed_although_the_other_one_goes_on(data, seeing, tmp_path, monkeypatch):
    """Beside it the other batch is worked on for a minute, or until the device is given up."""
    victim = studies_of(data)[0]
    never = hang(monkeypatch, victim)
    work, given_up, end = DeviceWorker.work, threading.Event(), time.monotonic() + 60

    def busy(self: DeviceWorker, lane: object, batch: reading.StudyBatch, *given: object) -> object:
        while victim not in batch.names and time.monotonic() < end and not given_up.is_set():
            work(self, lane, batch, *given)  # type: ignore[arg-type]
        return work(self, lane, batch, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(DeviceWorker, "work", busy)
    started = time.monotonic()
    found = run(data, seeing, tmp_path, "--patience", "2")
    took_s = time.monotonic() - started
    for event in (given_up, never):
        event.set()
    assert took_s < 40 and found.report["problem_counts"]["devices-lost"] == 1


def test_a_study_that_hangs_time_and_again_costs_itself_alone(data, seeing, plain, tmp_path, monkeypatch):
    """Three processes, as the supervisor starts them: in the second one it runs alone, the third does without."""
    victim, *others = studies_of(data)
    never = hang(monkeypatch, victim)
    given = ["--competition", str(data), "--weights", str(seeing), "--out", str(tmp_path), "--patience", "4"]
    for restart, code in enumerate((4, 4, 0)):
        monkeypatch.setenv("LUMBAR_RESTART", str(restart))
        assert predict.main(given) == code
        if code == 4:
            journal = json.loads((tmp_path / ".progress" / "in_progress.json").read_text())
            assert journal["now"] == [victim] and journal["deaths"].get(victim, 0) == restart
    never.set()
    found = answered(0, data, tmp_path)
    for study in others:
        assert (found.rows(study) == plain.rows(study)).all()
    assert found.problems(victim) == {"given-up"} and found.report["studies"]["graded"] == STUDIES - 1
