"""Signals, a killed process, a full disk, files that vanish: the last complete file stands, and work done is kept."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from kernels.lumbar import predict
from kernels.lumbar.networks.weights import MANIFEST_FILE, read_manifest
from kernels.lumbar.problems import Problem
from kernels.lumbar.run import kept_studies, read_ahead, results, submission
from tests.lumbar.run.test_rounds import studies_of
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.faults.fault_runs import answered, assert_same, run_here

STUDIES = 6
# Runs the kernel with slow forwards, so that a test can meet it at work.
SLOWLY = """
import time
from kernels.lumbar import predict
from kernels.lumbar.networks.loading import LoadedMember
forward = LoadedMember._forward
def slow(self, *inputs):
    time.sleep({seconds})
    return forward(self, *inputs)
LoadedMember._forward = slow
predict.WRITE_EVERY_S = 0
predict.run_process()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_foreign_dataset(folder, studies=1, seed=33, test_studies=STUDIES)
    return folder


@pytest.fixture(scope="module")
def plain(data, seeing, tmp_path_factory):
    return run_here(data, seeing, tmp_path_factory.mktemp("plain"))


def start(data: Path, weights: Path, out: Path, restart: int, slowly_s: float) -> subprocess.Popen[bytes]:
    code = SLOWLY.format(seconds=slowly_s)
    given = ["--competition", str(data), "--weights", str(weights), "--out", str(out)]
    environment = {**os.environ, "LUMBAR_RESTART": str(restart), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *given], env=environment, stderr=subprocess.DEVNULL)


def wait_for_work(out: Path, seconds: float = 300) -> None:
    """Until two studies were kept."""
    end, path, written = time.monotonic() + seconds, out / ".progress" / "store.npz", set()
    while len(written) < 3:
        assert time.monotonic() < end, "it did not come to that"
        written |= {path.stat().st_mtime_ns} if path.is_file() else set()
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_kernel_in_order_with_what_it_has(data, seeing, tmp_path, number):
    running = start(data, seeing, tmp_path, 0, slowly_s=0.3)
    wait_for_work(tmp_path)
    running.send_signal(number)
    assert running.wait(60) == 0
    found = answered(0, data, tmp_path)
    (problem,) = (one for one in found.report["problems"] if one["kind"] == "run-cut-short")
    assert signal.Signals(number).name in problem["detail"]
    assert 0 < found.report["studies"]["graded"] <= STUDIES and not (tmp_path / ".progress").exists()


def test_a_killed_kernel_is_taken_up_where_it_was(data, seeing, plain, tmp_path, monkeypatch):
    running = start(data, seeing, tmp_path, 0, slowly_s=0.4)
    wait_for_work(tmp_path)
    running.kill()
    running.wait()
    ids = pd.read_csv(data / "sample_submission.csv", dtype=str)["row_id"]
    submission.check(pd.read_csv(tmp_path / "submission.csv", dtype={"row_id": str}), list(ids))
    monkeypatch.setenv("LUMBAR_RESTART", "1")
    found = run_here(data, seeing, tmp_path)
    assert_same(found, plain, *studies_of(data))
    assert found.report["members_used"] == plain.report["members_used"]
    assert not (tmp_path / ".progress").exists()


def test_what_was_done_before_a_kill_is_not_done_again(data, seeing, plain, tmp_path, monkeypatch):
    manifest = read_manifest(seeing / MANIFEST_FILE)
    names = studies_of(data)
    monkeypatch.setenv("LUMBAR_RESTART", "0")
    monkeypatch.setattr(predict, "WRITE_EVERY_S", 0.0)
    kept, saved = results.Results.save, tmp_path / "kept.npz"
    monkeypatch.setattr(
        results.Results, "save", lambda self, path, made_by: (kept(self, path, made_by), kept(self, saved, made_by))
    )
    run_here(data, seeing, tmp_path / "first")
    (tmp_path / "second" / ".progress").mkdir(parents=True)
    shutil.copy(saved, tmp_path / "second" / ".progress" / "store.npz")
    monkeypatch.setenv("LUMBAR_RESTART", "1")
    monkeypatch.setattr(read_ahead, "read_study", lambda *given: pytest.fail("a study was read again"))
    found = run_here(data, seeing, tmp_path / "second")
    pd.testing.assert_frame_equal(found.frame, plain.frame, check_exact=True)
    assert found.report["rounds"] == [] and found.report["problems"] == plain.report["problems"]
    other = results.Results(manifest, names[:-1])
    assert not other.restore(saved, "another manifest") and not other.restore(tmp_path / "none.npz", "")


def test_a_study_that_kills_twice_keeps_its_prior(data, seeing, plain, tmp_path, monkeypatch):
    victim, *others = studies_of(data)
    progress = tmp_path / ".progress"
    progress.mkdir()
    beside = others[0]  # sound, but in progress when the first kernel died
    (progress / "in_progress.json").write_text(f'{{"deaths": {{"{victim}": 1, "{beside}": 1}}, "now": ["{victim}"]}}')
    monkeypatch.setenv("LUMBAR_RESTART", "2")
    found = run_here(data, seeing, tmp_path)
    assert_same(found, plain, *others)
    assert found.problems(victim) == {"given-up"} and found.report["fallbacks"]["never_graded"] == 1


# Kills the kernel by a study, once its networks begin on it while another study is in flight.
POISONED = """
import os, signal, sys, time
from kernels.lumbar import predict
from kernels.lumbar.run.device_worker import DeviceWorker
work, at_work = DeviceWorker.work, []
def poisoned(self, lane, batch, *given):
    at_work.extend(batch.names)
    if "{victim}" in batch.names:
        time.sleep(0.5)
        print("in flight:", len(set(at_work)), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return work(self, lane, batch, *given)
DeviceWorker.work = poisoned
os.cpu_count = lambda: 2
predict.run_process()
"""


def test_a_study_that_kills_beside_others_in_flight_costs_itself_alone(data, seeing, plain, tmp_path):
    victim, *others = studies_of(data)
    given = ["--competition", str(data), "--weights", str(seeing), "--out", str(tmp_path)]
    ends = []
    for restart in range(4):
        environment = {**os.environ, "LUMBAR_RESTART": str(restart), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", POISONED.format(victim=victim), *given]
        ended = subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        ends.append(ended)
        if ended.returncode == 0:
            break
    assert [ended.returncode for ended in ends] == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert int(ends[0].stdout.split("in flight: ")[1]) > 1
    found = answered(0, data, tmp_path)
    assert_same(found, plain, *others)
    assert found.problems(victim) == {"given-up"} and found.report["fallbacks"]["never_graded"] == 1


def test_a_full_disk_leaves_the_last_complete_file(data, seeing, tmp_path, monkeypatch):
    write, times = submission.replace_text, []

    def full(path: Path, text: str) -> None:
        if path.name == "submission.csv":
            times.append(path)
            if len(times) > 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(submission, "replace_text", full)
    monkeypatch.setattr(predict, "WRITE_EVERY_S", 0.0)
    found = run_here(data, seeing, tmp_path)
    assert len(times) > 3 and found.report["problem_counts"]["file-not-replaced"] == 1
    assert found.frame.drop(columns="row_id").drop_duplicates().shape[0] <= 15, "the one of the manifest's priors"


def test_nowhere_to_write_is_said_with_code_2(data, seeing, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    given = ["--competition", str(data), "--weights", str(seeing), "--out", str(tmp_path / "file" / "out")]
    assert predict.main(given) == 2
    assert "No submission can be written" in capsys.readouterr().err


def test_a_study_that_vanishes_between_two_rounds_keeps_what_it_has(data, seeing, plain, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    victim, *others = studies_of(copy)
    read, seen = read_ahead.read_study, []
    monkeypatch.setattr(kept_studies, "KEPT_BYTES", 0)  # so that the second round reads again

    def vanishing(folder, study, series):
        seen.append(study)
        if len(seen) == STUDIES + 1:
            shutil.rmtree(copy / "test_images" / victim)
        return read(folder, study, series)

    monkeypatch.setattr(read_ahead, "read_study", vanishing)
    found = run_here(copy, seeing, tmp_path / "out")
    assert_same(found, plain, *others)
    assert "no-folder" in found.problems(victim)
    assert found.report["fallbacks"]["studies"].get(victim, []) == [], "the first round had answered every row"


def test_a_store_keeps_what_it_is_given(data, seeing, tmp_path):
    manifest = read_manifest(seeing / MANIFEST_FILE)
    first, second = (results.Results(manifest, ["1", "2"]) for _ in range(2))
    first.problems[Problem("1", "é", "kind", "detail")] = None
    job = next(iter(first.jobs))
    first.set_answers("2", job, {}, 2)
    first.save(tmp_path / "store.npz", "digest")
    assert second.restore(tmp_path / "store.npz", "digest")
    assert second.problems == first.problems and second.used == {job[1]} and second.graded() == ["2"]
    (tmp_path / "store.npz").write_bytes((tmp_path / "store.npz").read_bytes()[:-50])
    assert not second.restore(tmp_path / "store.npz", "digest")
