"""Training on the device by the usual command: it runs, is stopped, goes on, and its package answers alike."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from kernels.lumbar.manifest import Shape
from training.benchmarks.untrained_packages import write_package
from training.packaging.packs import collect
from training.recipe.load import load_named
from training.runs import RunFolder

from . import parity
from .kernel_runs import cpus, nearly_all, run, worst
from .setting import Record, Setting

RECIPE = "split_and_global"
STOPPED = 3
POLL_S = 0.2
# Trained networks look at real structures: half precision may move a probability by so much.
MOST_APART = 0.03
SAID = 1500


class TrainingFailed(Exception):
    """Says what the command said last."""


def measure(setting: Setting, record: Record) -> None:
    """Train a recipe in the smoke profile, stopped once on the way; package it; run the kernel on device and CPU."""
    table = record.table(f"training {RECIPE}, smoke", ["step", "seconds", "what"])
    shutil.rmtree(setting.work / "runs", ignore_errors=True)  # what an earlier bench left
    started = time.monotonic()
    code = _train(setting, stop=True)
    table.rows.append(["stopped after an epoch", time.monotonic() - started, f"code {code}"])
    record.check(code == STOPPED, f"stopped, it ends with code {code}, not {STOPPED}")
    record.save()
    started = time.monotonic()
    code = _train(setting, stop=False)
    table.rows.append(["to its end", time.monotonic() - started, f"code {code}"])
    record.save()
    folder = RunFolder(setting.work / "runs", load_named(RECIPE, "smoke"))
    table.rows.append(["score out of fold", None, folder.score.read_text().replace("\n", " ")])
    runs = collect(folder, [0], allow_partial=False)
    package = setting.work / "trained"
    write_package(package, {RECIPE: runs}, Shape.model_validate_json(folder.shape.read_bytes()))
    parity.compare(package, setting, record)
    here = run(setting, "trained-on-cpu", cpus(3), package=package)
    there = run(setting, "trained-on-device", setting.device, package=package)
    for name, one in (("kernel, cpu", here), (f"kernel, {setting.device}", there)):
        table.rows.append([name, one.seconds, one.summary()])
        for fault in one.faults(len(runs)):
            record.check(False, f"{name}: {fault}")
    apart = worst(here, there)
    table.rows.append(["largest difference of a probability", apart, ""])
    most = nearly_all(here, there)
    record.check(most <= MOST_APART, f"with trained networks 1 % of the rows differ by more than {most:.3g}")


def _train(setting: Setting, stop: bool) -> int:
    """Run the command; its exit code.  Raises TrainingFailed where it is neither 0 nor that of a stopped one."""
    runs, log = setting.work / "runs", setting.work / f"training-{'stopped' if stop else 'ended'}.log"
    given = ["--data", setting.data, "--runs", runs, "--profile", "smoke", "--recipes", RECIPE, "--folds", "0"]
    given += ["--jobs", max(1, (os.cpu_count() or 1) // 2)]
    with log.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "training.train_all", *map(str, given)], stdout=stream, stderr=stream
        )
        while stop and child.poll() is None and not _has_epoch(runs):
            time.sleep(POLL_S)
        if stop and child.poll() is None:
            child.send_signal(signal.SIGTERM)
        code = child.wait()
    if code not in (0, STOPPED):
        raise TrainingFailed(f"train_all ended with code {code}: {log.read_text(errors='replace')[-SAID:]}")
    return code


def _has_epoch(runs: Path) -> bool:
    return any(runs.glob(f"{RECIPE}/smoke/*/fold0/history.csv"))
