"""`make predict`: studies in shards on the workflow engine, the bytes of one run, and on where it was interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernels.locks import hold, is_busy, terminate_holder
from training.workflow import engine, predict_shards, run_shard


def options(ten_studies: Path, weights: Path, out: Path, *more: str) -> list[str]:
    return [
        "--data",
        str(ten_studies),
        "--weights",
        str(weights),
        "--out",
        str(out),
        "--shards",
        "2",
        "--jobs",
        "2",
        *more,
    ]


@pytest.fixture(scope="module")
def predicted(ten_studies, seeing, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("predicted")
    assert predict_shards.main(options(ten_studies, seeing, out)) == 0
    return out


def test_two_shards_on_the_engine_write_the_bytes_of_one_run(predicted, whole):
    assert (predicted / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()


def test_what_is_answered_is_not_asked_again_but_a_failed_shard_is_named_and_then_done(
    ten_studies, seeing, predicted, whole, tmp_path, capsys, monkeypatch
):
    out = Path(shutil.copytree(predicted, tmp_path / "out", symlinks=True))
    kept = (out / "shards" / "0000" / "out" / "run_report.json").stat().st_mtime_ns
    shutil.rmtree(out / "shards" / "0001" / "out")
    monkeypatch.setenv("LUMBAR_MANIFEST", "0" * 64)  # so that the kernel refuses its weights
    assert predict_shards.main(options(ten_studies, seeing, out)) == 1
    said = capsys.readouterr().err
    assert "1 of 2 shards have no answers: the kernel of shard 0001 ended with code 3" in said
    monkeypatch.delenv("LUMBAR_MANIFEST")
    assert predict_shards.main(options(ten_studies, seeing, out)) == 0
    assert (out / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()
    assert (out / "shards" / "0000" / "out" / "run_report.json").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--weights": "/nowhere"}, "holds no manifest.json"),
        ({"--shards": "7"}, "10 studies make 1 to 2 shards, not 7"),
        ({"--data": "/nowhere"}, "is not a folder"),
        ({"--jobs": "0"}, "JOBS is the number of kernels at a time"),
        ({"--executor": "mainframe"}, "there is no executor 'mainframe'"),
    ],
)
def test_orders_that_cannot_be_done_are_a_sentence(ten_studies, seeing, tmp_path, capsys, change, sentence):
    given = options(ten_studies, seeing, tmp_path / "out")
    for option, value in change.items():
        given += [option, value]
    assert predict_shards.main(given) == 1
    assert sentence in capsys.readouterr().err


def test_a_kernel_that_was_stopped_leaves_no_answers(tmp_path, monkeypatch, capsys):
    def stopped(given):
        out = Path(given[given.index("--out") + 1])
        (out / "run_report.json").write_text('{"supervision": [{"code": 0, "reason": "SIGINT was passed on"}]}')
        return 0

    folder = tmp_path / "shards" / "0000"
    folder.mkdir(parents=True)
    monkeypatch.setattr(run_shard.supervise, "main", stopped)
    assert run_shard.main([str(folder), "weights", "--time-limit", "9"]) == 1
    assert "was stopped by a signal" in capsys.readouterr().err and not (folder / "out").exists()


def test_a_shard_that_is_being_answered_is_waited_for_and_can_be_stopped(tmp_path):
    lock = tmp_path / run_shard.LOCK
    code = "import sys, time; from pathlib import Path; from kernels.locks import hold\n"
    code += "with hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        terminate_holder(lock)
        assert holder.wait(40) == -signal.SIGTERM
    terminate_holder(lock)
    with hold(lock):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")


def test_a_stopped_run_says_so(ten_studies, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict_shards, "_manifest", lambda weights: Path(__file__))
    waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
    popen = subprocess.Popen
    given = {}

    def begun(command, **options):
        given.update(options)
        process = popen(waiting, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(engine.subprocess, "Popen", begun)
    assert predict_shards.main(options(ten_studies, tmp_path, tmp_path / "out")) == 3
    assert "predict was stopped: 0 of 2 shards are answered" in capsys.readouterr().err
    assert given["pass_fds"], "Snakemake does not hold the lock"


@pytest.mark.slow
def test_a_killed_run_goes_on(ten_studies, seeing, whole, tmp_path):
    command = [sys.executable, "-m", "training.workflow.predict_shards", *options(ten_studies, seeing, tmp_path)]
    for _ in range(2):
        running = subprocess.Popen(command, start_new_session=True)
        time.sleep(9)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        while is_busy(tmp_path):  # by its Snakemake, for a moment
            time.sleep(0.05)
    assert predict_shards.main(options(ten_studies, seeing, tmp_path)) == 0
    assert (tmp_path / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command_alone_ends_its_kernels_and_it_goes_on(ten_studies, seeing, whole, tmp_path, number):
    command = [sys.executable, "-m", "training.workflow.predict_shards", *options(ten_studies, seeing, tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        while not list(tmp_path.glob("shards/*/unfinished_*/*")):
            assert running.poll() is None
            time.sleep(0.1)
        running.send_signal(number)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 3 and "predict was stopped: " in said, said
    assert not (tmp_path / "submission.csv").exists()
    assert predict_shards.main(options(ten_studies, seeing, tmp_path)) == 0
    assert (tmp_path / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()


@pytest.mark.slow
def test_shards_as_jobs_of_a_cluster(ten_studies, seeing, whole, tmp_path):
    assert predict_shards.main(options(ten_studies, seeing, tmp_path, "--executor", "shell")) == 0
    assert (tmp_path / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()
