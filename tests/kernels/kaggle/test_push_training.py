"""Training on Kaggle, as seen from here: a session that ends, one whose time is up, and one that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernels.kaggle import __main__ as shipping
from kernels.kaggle import training
from kernels.kaggle.client import KaggleError
from tests.support.kaggle.kaggle_state import Body, Faults, Files, RunKernel

KERNEL = "ann/lumbar-training"


def train(folder, *more: str) -> int:
    given = ["train", "--recipes", "split_and_global", "--owner", "ann", "--ship", str(folder), "--poll", "0.01"]
    return shipping.main([*given, *more])


def test_the_owner_is_the_clients_user_where_none_is_named(kaggle, tmp_path, monkeypatch):
    for name, value in kaggle.environment(tmp_path / "scratch", with_token=True).items():
        monkeypatch.setenv(name, value)
    kaggle.run_kernel = session(0, finished=1, left=0)
    assert train(tmp_path, "--owner", "your-kaggle-name") == 0
    assert list(kaggle.kernels) == [KERNEL]


def session(code: int | None, finished: int, left: int) -> RunKernel:
    """A session that says so of itself."""
    names = [f"network{number}" for number in range(finished + left)]
    state = {"code": code, "seconds": 9, "finished": names[:finished], "left": names[finished:]}

    def run(text: str, metadata: Body, datasets: dict[str, Files]) -> tuple[str, Files, str, str]:
        outputs = {"runs/session.json": json.dumps(state).encode(), "runs/split_and_global/priors.json": b"{}"}
        return "COMPLETE", outputs, "printed", ""

    return run


def test_a_session_whose_time_is_up_is_resumed_and_leaves_what_package_takes(kaggle, tmp_path, capsys):
    kaggle.run_kernel = session(3, finished=2, left=5)
    assert train(tmp_path) == 0
    assert "5 are left: `make push-train RECIPES=split_and_global RESUME=1` resumes" in capsys.readouterr().out
    first = kaggle.kernels[KERNEL][0].metadata
    assert first["machineShape"] == "NvidiaTeslaT4" and "kernelDataSources" not in first

    kaggle.run_kernel = session(0, finished=7, left=0)
    assert train(tmp_path, "--resume") == 0
    assert kaggle.kernels[KERNEL][1].metadata["kernelDataSources"] == [KERNEL]
    package = f"`make package RECIPES=split_and_global RUNS={tmp_path / 'trained' / 'runs'}` ships them"
    assert package in capsys.readouterr().out
    assert (tmp_path / "trained" / "runs" / "split_and_global" / "priors.json").is_file()


@pytest.mark.parametrize("code", [1, None])
def test_a_failed_training_is_no_success_though_kaggle_says_complete(kaggle, tmp_path, capsys, code):
    kaggle.run_kernel = session(code, finished=1, left=6)
    assert train(tmp_path) == 1
    assert "train stopped: training failed" in capsys.readouterr().err


def test_a_session_that_still_goes_is_waited_for(kaggle, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "RUN_WITHIN_S", 0.0)
    kaggle.faults = Faults(kernel_never_ends=True)
    assert train(tmp_path) == 1
    monkeypatch.setattr(shipping, "RUN_WITHIN_S", 60.0)
    kaggle.faults, kaggle.run_kernel = Faults(), session(0, finished=7, left=0)
    assert train(tmp_path) == 0
    assert len(kaggle.kernels[KERNEL]) == 1


def test_what_was_trained_before_stays_and_a_broken_line_costs_no_session(kaggle, tmp_path, capsys, monkeypatch):
    (tmp_path / "trained" / "runs" / "view_fusion").mkdir(parents=True)
    kaggle.run_kernel = session(0, finished=7, left=0)

    def broken(*given: object) -> Path:
        raise KaggleError("the line was cut")

    with monkeypatch.context() as cut:
        cut.setattr(training, "fetch_outputs", broken)
        assert train(tmp_path) == 1
    assert "`make push-train RECIPES=split_and_global` fetches what was trained" in capsys.readouterr().err
    assert train(tmp_path) == 0
    assert sorted(path.name for path in (tmp_path / "trained" / "runs").iterdir() if path.is_dir()) == [
        "split_and_global",
        "view_fusion",
    ]
    assert len(kaggle.kernels[KERNEL]) == 1


def test_what_cannot_be_trained_is_said_before_anything_is_pushed(kaggle, tmp_path, capsys, monkeypatch):
    assert train(tmp_path, "--resume") == 1
    assert "no earlier session to resume" in capsys.readouterr().err
    assert train(tmp_path, "--folds", "9") == 1
    assert "has folds 0 to 4" in capsys.readouterr().err
    monkeypatch.setenv("KAGGLE_KEY", "")  # no credentials that could tell the owner
    given = ["train", "--recipes", "split_and_global", "--owner", "your-kaggle-name", "--ship", str(tmp_path)]
    assert shipping.main(given) == 1
    assert "OWNER=<your Kaggle name>" in capsys.readouterr().err
    assert kaggle.requests == []
