"""Seconds a study of the whole kernel by stage, with full-size images and the smoke profile's networks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

from kernels.lumbar.networks.devices import STUDIES_ON_GPU
from training.phantom.dataset import Options, make_dataset

from .kernel_runs import KernelFailed, KernelRun, arguments
from .prepare import SEED
from .setting import Record, Setting

STUDIES, TIMES = 6, 4
HIDDEN_STUDIES = 722
SAID = 1500


def measure(setting: Setting, record: Record) -> None:
    """One run with clocks in it, of what is as large as real studies."""
    studies, scale = (1, 0.25) if setting.small else (STUDIES, 1.0)
    full = replace(setting, work=setting.work / "full-size")
    make_dataset(full.data, Options(0, studies, SEED, scale), jobs=os.cpu_count() or 1, keep=True)
    out, file = full.work / "out", full.work / "taken.json"
    times = 1 if setting.small else TIMES
    given = [*arguments(full, out, setting.device, times, setting.package), "--batch", str(STUDIES_ON_GPU)]
    command = [sys.executable, "-m", "training.benchmarks.kernel_child", str(file), *given]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True)
    if done.returncode:
        raise KernelFailed(f"the kernel ended with code {done.returncode}: {done.stderr[-SAID:]}")
    taken, run = json.loads(file.read_text(encoding="utf-8")), KernelRun(out, 0.0)
    asked = run.report["studies"]["asked"]
    table = record.table(
        f"stages, {asked} studies, one lane: {run.summary()}", ["stage", "ms a study", "CPU ms a study"]
    )
    for name, seconds in sorted(taken["clocks"].items()):
        table.rows.append([name, 1e3 * seconds / asked, 1e3 * taken["clocks_cpu"].get(name, 0.0) / asked])
    loading = taken["clocks"].get("loading", 0.0)
    each = (run.report["seconds"]["total"] - loading) / asked
    table.rows.append(["all but loading", 1e3 * each, 1e3 * taken["kernel_cpu_s"] / asked])
    table.remarks = [
        "reading and cutting are done by helpers, beside the forwards",
        f"{HIDDEN_STUDIES} studies: {each * HIDDEN_STUDIES / 60:.1f} minutes with these; loading {loading:.0f} s",
        f"peak memory of the process: {taken['peak_mib']:.0f} MiB",
    ]
