"""The Makefile: what it runs with -m is there, and what its targets say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec

import pytest

from tests.support import ROOT

NEEDS_MAKE = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make(*words: str) -> list[str]:
    """The lines that make prints; `echo` in place of Python, nothing is installed."""
    command = ["make", "--no-print-directory", "-o", ".venv/installed", "PY=echo", *words]
    # As typed by a user: `make test` hands its own flags and level to a make below it.
    plain = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=True).stdout.splitlines()


def test_every_module_that_a_target_runs_exists_and_can_be_run():
    modules = set(re.findall(r"(?<=\s-m )[A-Za-z_][\w.]*", (ROOT / "Makefile").read_text(encoding="utf-8")))
    assert len(modules) > 15
    for name in sorted(modules):
        spec = find_spec(name)
        assert spec is not None, f"the Makefile runs {name}, which is no module"
        if spec.submodule_search_locations is not None:
            assert find_spec(f"{name}.__main__") is not None, f"{name} is a package without __main__"


@NEEDS_MAKE
def test_the_demo_is_one_command_of_five_stages_that_is_not_printed():
    (line,) = make("demo", "OWNER=your-kaggle-name")
    assert line.startswith("-m training.stages --stage phantom data: 160 studies") and line.count("--stage") == 5
    assert "--profile smoke" in line and "--runs demo/runs" in line


@NEEDS_MAKE
def test_the_missing_owner_is_said_where_a_push_comes_next():
    """`make package` says it itself: test_build_dataset."""
    assert "OWNER=<your Kaggle name>" in make("kernel", "OWNER=your-kaggle-name")[-1]
    assert "Kaggle name" not in "".join(make("kernel", "OWNER=ann"))


@NEEDS_MAKE
def test_the_committed_notebook_stays_as_it_is_and_another_is_pushed(tmp_path):
    (tmp_path / "manifest.json").touch()
    committed, pushed, _ = make("-s", "kernel", "OWNER=ann", f"WEIGHTS={tmp_path}")
    assert committed == "-m kernels.build_notebook --out kernels/inference --owner your-kaggle-name"
    assert pushed == f"-m kernels.build_notebook --out build/kernel --owner ann --weights {tmp_path}"
    assert "build/" in (ROOT / ".gitignore").read_text()


@NEEDS_MAKE
def test_ship_packages_only_where_nothing_is_there(tmp_path):
    weights = tmp_path / "my weights"
    weights.mkdir()
    packaging, shipping = make("-s", "ship", f"WEIGHTS={weights}", "RECIPES=a b", "ENSEMBLE=best.json")
    assert packaging.startswith("build_dataset.py ") and packaging.endswith("--recipes a,b --ensemble best.json")
    (weights / "manifest.json").touch()
    assert make("-s", "ship", f"WEIGHTS={weights}") == [shipping]
    (dry,) = make("-s", "ship", f"WEIGHTS={weights}", "DRY_RUN=1")
    assert dry == f"{shipping} --dry-run"
    with pytest.raises(subprocess.CalledProcessError) as refused:
        make("-s", "ship", f"WEIGHTS={weights}", "ENSEMBLE=best.json", "RUNS=others")
    assert "leave out ENSEMBLE= RUNS=, or `make package` with it first" in refused.value.stdout


@NEEDS_MAKE
@pytest.mark.parametrize("message", ["it's $HOME and $(shell echo x)", 'a "b" `c` \\ #d', "$Hello"])
def test_a_message_arrives_as_it_was_typed(message):
    (line,) = make("-s", "submit", f"MESSAGE={message}")
    assert line.endswith(f"--message {message}")


@NEEDS_MAKE
def test_a_rehearsal_is_on_its_phantom_or_on_the_data_that_are_named():
    (rehearsal,) = make("-s", "rehearse", "NETWORKS=spinal foraminal", "JOBS=2")
    assert rehearsal.startswith("-m training.rehearsal --out rehearsal --jobs 2 --profile full --memory-gb 16")
    assert rehearsal.endswith("--networks spinal foraminal")
    (rehearsal,) = make(
        "-s", "rehearse", "DATA=data", "MEMORY_GB=24", "OUT=there", "RECIPES=a b", "PROFILE=bench", "JOBS=2"
    )
    assert rehearsal.endswith("--data data --out there --jobs 2 --profile bench --memory-gb 24 --recipes a b")


@NEEDS_MAKE
def test_pretraining_is_a_phantom_and_a_training_that_start_takes():
    check, phantom, training, hint = make("-s", "pretrain", "JOBS=2")
    assert (
        phantom
        == "-m training.phantom --out pretrain/data --train 600 --test 0 --seed 2024 --scale 1.0 --jobs 2 --keep"
    )
    start = "-m training.workflow run --data pretrain/data --runs pretrain/runs --profile full --folds 0 --jobs 2"
    assert training == f"{start} --no-ensemble" and check == training.replace(" run ", " check ")
    assert hint == 'begin from it: make train-all DATA=DIR START="pretrain/runs" PROFILE=full'
    options = ("RECIPES=a b", "PROFILE=bench", "STUDIES=9", "LOCALISERS_ONLY=1", "OUT=my start", "FOLDS=1")
    check, phantom, training, hint = make("-s", "pretrain", *options)
    assert check == training.replace(" run ", " check ")
    assert phantom.startswith("-m training.phantom --out my start/data --train 9 ") and "--scale 0.6" in phantom
    assert "--profile bench --folds 1" in training and training.endswith("--recipes a b --localisers-only")
    assert hint.endswith('START="my start/runs" PROFILE=bench RECIPES="a b"')


@NEEDS_MAKE
def test_real_data_are_imported_trained_on_and_measured():
    (line,) = make("-s", "import-spider", "SPIDER=there")
    assert line.startswith("-m training.data.spider --spider there --out data-spider --jobs ")
    (line,) = make("-s", "bench-real", "DATA=data-spider", "JOBS=2")
    assert line == "-m training.benchmarks.real --data data-spider --runs bench-real --profile bench --jobs 2"
    (line,) = make(
        "-s", "bench-real", "DATA=d", "JOBS=2", "WEIGHTS=demo/weights", "RUNS=r", "PROFILE=smoke", "ROWS=zero scratch"
    )
    assert line.endswith("--data d --runs r --profile smoke --jobs 2 --weights demo/weights --rows zero scratch")
    (line,) = make("-s", "train-all", "DATA=d", "START=demo/weights", "LOCALISERS_ONLY=1")
    assert "--start demo/weights --localisers-only" in line and "--start" not in make("-s", "train-all", "DATA=d")[0]


@NEEDS_MAKE
@pytest.mark.parametrize("target", ["ensemble", "relabel", "report", "package", "distil"])
def test_members_from_elsewhere_are_named_to_each_command_that_takes_them(target: str) -> None:
    lines = make("-s", target, "OOF=theirs", "DATA=d")
    assert sum("--oof theirs" in line for line in lines) == (2 if target == "distil" else 1)


@NEEDS_MAKE
def test_a_student_is_taught_trained_packaged_and_compared():
    teach, train, compare = make(
        "-s", "distil", "DATA=d", "RUNS=my runs", "PROFILE=bench", "LABELS=mine.csv", "OUT=out"
    )
    ensemble = "--runs my runs --profile bench --ensemble my runs/ensemble.json"
    assert teach == f"-m training.ensemble.distil labels {ensemble} --out my runs/soft_labels.csv"
    assert train.startswith("-m training.workflow run --data d --runs my runs --profile bench")
    assert "--package out" in train and "--recipes student --labels my runs/soft_labels.csv" in train
    assert compare == f"-m training.ensemble.distil compare {ensemble} --student student --out my runs"
    own = make("-s", "distil", "DATA=d", "RECIPES=my/pupil.yaml", "ENSEMBLE=best.json")
    assert (
        "--ensemble best.json" in own[0]
        and "--recipes my/pupil.yaml" in own[1]
        and "--package weights-student" in own[1]
    )
    assert own[2].endswith("--student my/pupil.yaml --out runs")
    teach, _, compare = make("-s", "distil", "DATA=d", "TEACHERS=my/a.yaml view_fusion", "OOF=theirs")
    taught_by = "--ensemble runs/ensemble.json --recipes my/a.yaml view_fusion --oof theirs --data d"
    assert f"{taught_by} --out runs/soft_labels.csv" in teach and f"{taught_by} --student student" in compare
    searched = make("-s", "ensemble", "STACKER=mlp trees")[0]
    assert searched.endswith("--stacker mlp trees") and "--stacker" not in make("-s", "ensemble")[0]
