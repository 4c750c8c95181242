"""Runs of the whole kernel, each in a process of its own, and what they say of themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from kernels.lumbar.labels import SEVERITIES
from kernels.lumbar.networks.weights import read_manifest
from training.benchmarks.untrained_packages import Studies, link_studies

ROOT = Path(__file__).resolve().parents[2]
SAID = 2000  # characters of what a failed run said


class BenchError(Exception):
    """Nothing to measure, or a run of the kernel that did not end as it should."""


@dataclass(frozen=True)
class RunOptions:
    """One run: which package, on which devices (a lane each), how many studies at once, each study how often."""

    package: str
    devices: str
    batch: int
    times: int

    @property
    def lanes(self) -> int:
        """How many batches are worked on at a time."""
        return len(self.devices.split(","))


@dataclass(frozen=True)
class FinishedRun:
    """What a run took, and what it left."""

    studies: int
    members: int
    weights_mb: float
    wall_s: float
    cpu_s: float
    kernel_cpu_s: float
    """From when all is imported."""
    peak_mib: float
    clocks: dict[str, float]
    """Seconds of kernel_child's clocks by name, and in the next the CPU seconds of the threads."""
    clocks_cpu: dict[str, float]
    report: dict[str, Any]
    submission: bytes
    answers: np.ndarray
    """(rows, 3) of the submission."""

    @property
    def total_s(self) -> float:
        """From the start of the kernel, when all is imported, to its end."""
        return float(self.report["seconds"]["total"])

    @property
    def rounds_s(self) -> float:
        """In which studies went through networks, loading these included."""
        return float(sum(one["seconds"] for one in self.report["rounds"]))

    @property
    def study_s(self) -> float:
        """Seconds a study."""
        return self.rounds_s / self.studies

    @property
    def study_cpu_s(self) -> float:
        """CPU seconds a study of all threads, without those of loading members."""
        return (self.kernel_cpu_s - self.clocks_cpu.get("loading", 0.0)) / self.studies


class Runs:
    """Where runs are made, over the same studies."""

    def __init__(self, scratch: Path, studies: Studies, packages: Mapping[str, Path]) -> None:
        self._scratch, self._studies, self._packages = scratch, studies, packages

    def run(self, orders: Iterable[RunOptions]) -> dict[RunOptions, FinishedRun]:
        """Make all runs, one after the other.  Raises BenchError where one fails, or leaves a study out."""
        different = list(dict.fromkeys(orders))
        with tqdm(total=len(different), unit="run", desc="kernel") as bar:
            finished: dict[RunOptions, FinishedRun] = {}
            for order in different:
                bar.set_postfix_str(f"{order.package}, {order.devices}, studies × {order.times}")
                finished[order] = self._run(order, self._scratch / f"run-{len(finished)}-{order.devices[:4]}")
                bar.update()
        return finished

    def _competition(self, times: int) -> Path:
        folder = self._scratch / f"times-{times}"
        if not folder.is_dir():
            link_studies(folder, self._studies, times)
        return folder

    def _run(self, order: RunOptions, out: Path) -> FinishedRun:
        weights, record = self._packages[order.package], out.with_suffix(".json")
        given = ["--competition", str(self._competition(order.times)), "--weights", str(weights), "--out", str(out)]
        given += ["--devices", order.devices, "--batch", str(order.batch)]
        command = [sys.executable, "-m", "training.benchmarks.kernel_child", str(record), *given]
        settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise BenchError(f"the kernel ended with code {done.returncode}: {done.stderr[-SAID:]}")
        taken = json.loads(record.read_text(encoding="utf-8"))
        report = json.loads((out / "run_report.json").read_text(encoding="utf-8"))
        if report["studies"]["graded"] < report["studies"]["asked"]:
            raise BenchError(f"studies were left out by {order.package}: {report['problem_counts']}")
        artefacts = read_manifest(weights / "manifest.json").artefacts
        frame = pd.read_csv(out / "submission.csv")
        return FinishedRun(
            studies=report["studies"]["asked"],
            members=len(report["members_used"]),
            weights_mb=sum(one.weights.bytes for one in artefacts) / 1e6,
            wall_s=taken["wall_s"],
            cpu_s=taken["cpu_s"],
            kernel_cpu_s=taken["kernel_cpu_s"],
            peak_mib=taken["peak_mib"],
            clocks=taken["clocks"],
            clocks_cpu=taken["clocks_cpu"],
            report=report,
            submission=(out / "submission.csv").read_bytes(),
            answers=frame[list(SEVERITIES)].to_numpy(),
        )
