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

from training.workflow import predict


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
    assert predict.main(options(ten_studies, seeing, out)) == 0
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
    assert predict.main(options(ten_studies, seeing, out)) == 1
    said = capsys.readouterr().err
    assert "1 of 2 shards have no answers: the kernel of shard 0001 ended with code 3" in said
    monkeypatch.delenv("LUMBAR_MANIFEST")
    assert predict.main(options(ten_studies, seeing, out)) == 0
    assert (out / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()
    assert (out / "shards" / "0000" / "out" / "run_report.json").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--weights": "/nowhere"}, "holds no manifest.json"),
        ({"--shards": "7"}, "10 studies make 1 to 2 shards, not 7"),
        ({"--data": "/nowhere"}, "is not a folder"),
        ({"--executor": "mainframe"}, "there is no executor 'mainframe'"),
    ],
)
def test_orders_that_cannot_be_done_are_a_sentence(ten_studies, seeing, tmp_path, capsys, change, sentence):
    given = options(ten_studies, seeing, tmp_path / "out")
    for option, value in change.items():
        given += [option, value]
    assert predict.main(given) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_goes_on(ten_studies, seeing, whole, tmp_path):
    command = [sys.executable, "-m", "training.workflow.predict", *options(ten_studies, seeing, tmp_path)]
    for _ in range(2):
        running = subprocess.Popen(command, start_new_session=True)
        time.sleep(9)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert predict.main(options(ten_studies, seeing, tmp_path)) == 0
    assert (tmp_path / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()


@pytest.mark.slow
def test_shards_as_jobs_of_a_cluster(ten_studies, seeing, whole, tmp_path):
    assert predict.main(options(ten_studies, seeing, tmp_path, "--executor", "shell")) == 0
    assert (tmp_path / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()
