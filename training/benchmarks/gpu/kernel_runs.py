"""Runs of the kernel on the phantom's test studies, and how two of their submissions differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kernels.lumbar.labels import SEVERITIES
from training.benchmarks.untrained_packages import choose_studies, link_studies

from .setting import Setting

ALL = 10_000
SAID = 1500


class KernelFailed(Exception):
    """A run of the kernel that did not end as it should; says what it said."""


@dataclass(frozen=True)
class KernelRun:
    """What one run left."""

    out: Path
    seconds: float

    @property
    def report(self) -> dict[str, Any]:
        """Its run_report.json."""
        found: dict[str, Any] = json.loads((self.out / "run_report.json").read_text(encoding="utf-8"))
        return found

    @property
    def bytes(self) -> bytes:
        """Its submission.csv."""
        return (self.out / "submission.csv").read_bytes()

    @property
    def answers(self) -> np.ndarray:
        """(rows, 3) probabilities."""
        answers: np.ndarray = pd.read_csv(self.out / "submission.csv")[list(SEVERITIES)].to_numpy()
        return answers

    def summary(self) -> str:
        """One line for people."""
        report = self.report
        studies = report["studies"]
        used, problems = len(report["members_used"]), report["problem_counts"]
        return f"{studies['graded']}/{studies['asked']} studies, {used} networks, {report['device']}, {problems}"

    def faults(self, members: int) -> list[str]:
        """Studies that were left out, and networks that were not used."""
        report = self.report
        found = []
        if report["studies"]["graded"] < report["studies"]["asked"]:
            found.append(f"studies were left out: {self.summary()}")
        if len(report["members_used"]) < members:
            found.append(f"{len(report['members_used'])} of {members} networks were used: {report['problems'][:3]}")
        return found


def arguments(setting: Setting, out: Path, devices: str, times: int = 1, package: Path | None = None) -> list[str]:
    """The kernel's options, for each study so many times."""
    competition = setting.work / f"studies-{out.name}"
    if not competition.is_dir():
        studies = choose_studies(setting.data, ALL)
        assert studies is not None
        link_studies(competition, studies, times)
    given = ["--competition", competition, "--weights", package or setting.package, "--out", out, "--devices", devices]
    return [*map(str, given), "--time-limit", str(setting.seconds)]


def run(
    setting: Setting, name: str, devices: str, times: int = 1, threads: int = 2, package: Path | None = None
) -> KernelRun:
    """Run the kernel in a process of its own.  Raises KernelFailed."""
    out = setting.work / name
    command = [sys.executable, "-m", "kernels.lumbar.predict", *arguments(setting, out, devices, times, package)]
    started = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode or not (out / "run_report.json").is_file():
        raise KernelFailed(f"the kernel ended with code {done.returncode}: {done.stderr[-SAID:]}")
    return KernelRun(out, time.monotonic() - started)


def cpus(most: int = 6) -> str:
    """Lanes on the CPU, two threads each."""
    return ",".join(["cpu"] * max(1, min(most, (os.cpu_count() or 1) // 2)))


def worst(one: KernelRun, other: KernelRun) -> float:
    """The largest difference of a probability."""
    return float(np.abs(one.answers - other.answers).max())


def nearly_all(one: KernelRun, other: KernelRun) -> float:
    """What 99 % of the rows differ by at most.

    The last row says little: where two peaks of a heatmap are nearly equal, rounding decides between them, and all rows
    that are graded at that landmark follow.
    """
    return float(np.percentile(np.abs(one.answers - other.answers).max(1), 99))
