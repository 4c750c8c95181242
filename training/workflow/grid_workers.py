"""What several workers are worth, in one run: the same grid from nothing, serially, with one worker, with two."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from training.workflow.engine import ROOT, THREAD_LIMITS
from training.workflow.grid import GridOrder


def bench(order: GridOrder) -> int:
    """Print seconds and ratios, decoding included; every job has one thread."""
    place = order.runs / "bench"
    rows: list[tuple[str, float, float, float]] = []
    for label, module, jobs in (
        ("train_all, one process", "training.train_all", 1),
        ("DAG, one worker", "training.workflow run", 1),
        ("DAG, two workers", "training.workflow run", 2),
    ):
        shutil.rmtree(place / "runs", ignore_errors=True)
        changed = {"runs": place / "runs", "cache": None, "jobs": jobs}
        started, before_s, load = time.monotonic(), _cpu_s(), os.getloadavg()[0]
        done = _train(order.model_copy(update=changed), module, place / "bench.log")
        rows.append((label, time.monotonic() - started, _cpu_s() - before_s, load))
        if done:
            sys.stderr.write(f"bench stopped: {label} ended with code {done} (see {place / 'bench.log'})\n")
            return 1
    lines = [f"{'way':24}  seconds  of a core  load before"]
    lines += [f"{label:24}  {wall_s:7.1f}  {cpu_s:9.1f}  {load:11.2f}" for label, wall_s, cpu_s, load in rows]
    (_, serial_s, serial_cpu_s, _), (_, one_s, one_cpu_s, _), (_, two_s, _, _) = rows
    lines += [f"two workers end {one_s / two_s:.2f} times sooner than one"]
    more_s = f"{one_s - serial_s:.1f} s more, {one_cpu_s - serial_cpu_s:.1f} s of a core"
    lines += [f"one worker takes {one_s / serial_s:.2f} times as long as train_all: {more_s}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _cpu_s() -> float:
    """Seconds of a core that processes took which we began, and which have ended, and theirs."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _train(order: GridOrder, module: str, log: Path) -> int:
    command = [sys.executable, "-m", *module.split(), "--data", str(order.data), "--runs", str(order.runs)]
    command += ["--recipes", *order.recipes, "--profile", order.profile, "--jobs", str(order.jobs)]
    command += ["--folds", *map(str, order.folds)]
    command += ["--localisers-only"] if order.localisers_only else []
    command += ["--no-ensemble", "--gpus", "0"] if module.startswith("training.workflow") else []
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | dict.fromkeys(THREAD_LIMITS, "1")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as stream:
        return subprocess.run(command, env=variables, stdout=stream, stderr=stream, check=False).returncode
