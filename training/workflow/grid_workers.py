"""The same grid from an empty folder, serially, with one worker and with two: seconds of each."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time

from training.workflow.engine import ROOT, THREAD_LIMITS
from training.workflow.grid import GridOrder

SERIAL, ONE, TWO = "train_all, one process", "DAG, one worker", "DAG, two workers"
WORKFLOW = ("training.workflow", "run", "--no-ensemble", "--gpus", "0")
WAYS = {SERIAL: ("training.train_all", "--jobs", "1"), ONE: (*WORKFLOW, "--jobs", "1"), TWO: (*WORKFLOW, "--jobs", "2")}


def bench(order: GridOrder) -> int:
    """Print seconds and ratios, decoding included; every job has one thread."""
    place = order.runs / "bench"
    runs, log = place / "runs", place / "bench.log"
    place.mkdir(parents=True, exist_ok=True)
    given = ["--data", str(order.data), "--runs", str(runs), "--recipes", *order.recipes, "--profile", order.profile]
    given += ["--folds", *map(str, order.folds)]
    given += ["--localisers-only"] if order.localisers_only else []
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | dict.fromkeys(THREAD_LIMITS, "1")
    wall_s, cpu_s = dict[str, float](), dict[str, float]()
    lines = [f"{'way':24}  seconds  of a core  load before"]
    for label, (module, *options) in WAYS.items():
        shutil.rmtree(runs, ignore_errors=True)
        started, before_s, load = time.monotonic(), _cpu_s(), os.getloadavg()[0]
        command = [sys.executable, "-m", module, *options, *given]
        with open(log, "ab") as stream:
            code = subprocess.run(command, env=variables, stdout=stream, stderr=stream, check=False).returncode
        if code:
            sys.stderr.write(f"bench stopped: {label} ended with code {code} (see {log})\n")
            return 1
        wall_s[label], cpu_s[label] = time.monotonic() - started, _cpu_s() - before_s
        lines.append(f"{label:24}  {wall_s[label]:7.1f}  {cpu_s[label]:9.1f}  {load:11.2f}")
    more_s = f"{wall_s[ONE] - wall_s[SERIAL]:.1f} s more, {cpu_s[ONE] - cpu_s[SERIAL]:.1f} s of a core"
    lines.append(f"two workers end {wall_s[ONE] / wall_s[TWO]:.2f} times sooner than one")
    lines.append(f"one worker takes {wall_s[ONE] / wall_s[SERIAL]:.2f} times as long as train_all: {more_s}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _cpu_s() -> float:
    """CPU seconds of the child processes that have ended, and of theirs."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime
