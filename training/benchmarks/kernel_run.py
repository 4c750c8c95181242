"""A run of the whole kernel in a process of its own, with clocks in it, and what it leaves."""

from __future__ import annotations

import functools
import io
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kernels.lumbar import predict
from kernels.lumbar.inputs.member_inputs import InputCache
from kernels.lumbar.labels import SEVERITIES
from kernels.lumbar.networks.loading import LoadedMember
from kernels.lumbar.problems import summary
from kernels.lumbar.run import read_ahead
from kernels.lumbar.run.device_worker import DeviceWorker
from training.benchmarks import process
from training.benchmarks.tables import BenchError


@dataclass(frozen=True)
class KernelRun:
    """What one run took, and what it left."""

    out: Path
    wall_s: float
    report: dict[str, Any]
    """Its run_report.json."""
    submission: bytes
    """Its submission.csv."""
    cpu_s: float = 0.0
    """Of all threads, without imports."""
    peak_mib: float = 0.0
    clocks: dict[str, float] = field(default_factory=dict)
    """Seconds by clock (see `clocked_kernel`), and in the next the CPU seconds of the calling threads."""
    clocks_cpu: dict[str, float] = field(default_factory=dict)
    clocks_exposed: dict[str, float] = field(default_factory=dict)
    """Seconds by clock that hide behind no other (see `Clocks`)."""

    @classmethod
    def read(cls, out: Path, wall_s: float, measured: dict[str, Any] | None = None) -> KernelRun:
        """A finished run; `measured`: what `clocked_kernel` recorded."""
        report = json.loads((out / "run_report.json").read_text(encoding="utf-8"))
        return cls(out, wall_s, report, (out / "submission.csv").read_bytes(), **(measured or {}))

    @property
    def studies(self) -> int:
        """Studies of the sample submission."""
        return int(self.report["studies"]["asked"])

    @property
    def members(self) -> int:
        """Networks that answered."""
        return len(self.report["members_used"])

    @property
    def answers(self) -> np.ndarray:
        """(rows, 3) probabilities."""
        answers: np.ndarray = pd.read_csv(io.BytesIO(self.submission))[list(SEVERITIES)].to_numpy()
        return answers

    @property
    def total_s(self) -> float:
        """The kernel from its start to its end, without imports."""
        return float(self.report["seconds"]["total"])

    @property
    def rounds_s(self) -> float:
        """All rounds: loading networks, and taking studies through them."""
        return float(sum(one["seconds"] for one in self.report["rounds"]))

    @property
    def study_s(self) -> float:
        """Seconds a study."""
        return self.rounds_s / self.studies

    @property
    def study_cpu_s(self) -> float:
        """CPU seconds a study of all threads, without loading networks."""
        return (self.cpu_s - self.clocks_cpu.get("loading", 0.0)) / self.studies

    def summary(self) -> str:
        """One line: studies, networks, device, problems."""
        graded, device = self.report["studies"]["graded"], self.report["device"]
        problems = ", ".join(f"{count} {kind}" for kind, count in self.report["problem_counts"].items())
        return f"{graded}/{self.studies} studies, {self.members} networks, {device}, {problems or 'no problems'}"

    def faults(self, members: int = 0) -> list[str]:
        """Studies without an answer, and fewer networks used than `members`."""
        found = []
        if self.report["studies"]["graded"] < self.studies:
            found.append(f"studies were left out: {self.summary()}")
        if self.members < members:
            problems = summary(self.report["problems"], str(self.out / "run_report.json"))
            found.append(f"{self.members} of {members} networks were used; {problems}")
        return found

    def largest_difference(self, other: KernelRun) -> float:
        """Of a probability."""
        return float(np.abs(self.answers - other.answers).max())

    def usual_difference(self, other: KernelRun) -> float:
        """99th percentile over rows of the largest difference of a probability.

        The last percent carries little information: where two peaks of a heatmap are nearly equal, rounding decides
        between them, and all rows that are graded at that landmark follow.
        """
        return float(np.percentile(np.abs(self.answers - other.answers).max(1), 99))


def kernel_options(weights: Path, competition: Path, out: Path, devices: str, **more: object) -> list[str]:
    """Options of kernels.lumbar.predict; `devices`: with commas between, a worker each."""
    given = {"competition": competition, "weights": weights, "out": out, "devices": devices, **more}
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def run_kernel(options: Sequence[str], out: Path, threads: int = 1) -> KernelRun:
    """Run the kernel with clocks in a process of its own.  Raises BenchError where it fails."""
    record = out.with_suffix(".json")
    ended = process.call(f"{__name__}:clocked_kernel", [record, *options], out.with_suffix(".log"), threads=threads)
    if ended.code or not (out / "run_report.json").is_file():
        raise BenchError(f"the kernel ended with code {ended.code}: {ended.log_tail}")
    return KernelRun.read(out, ended.seconds, json.loads(record.read_text(encoding="utf-8")))


def clocked_kernel(record: str, *options: str) -> int:
    """Run the kernel in this process, its stages clocked; times and peak memory go to the file `record`."""
    clocks = Clocks()
    clocks.attach(DeviceWorker, "load", "loading")
    clocks.attach(LoadedMember, "_forward", "forwards")  # not the call, which waits for the other batch in flight
    clocks.attach(InputCache, "inputs_of", "cutting")
    clocks.attach(read_ahead.ReadAhead, "__next__", "waiting")
    clocks.attach(read_ahead, "read_study", "reading")
    started_s = time.process_time()
    code = predict.main(options)
    measured = {
        "cpu_s": time.process_time() - started_s,
        "peak_mib": process.peak_mib(),
        "clocks": clocks.seconds,
        "clocks_cpu": clocks.cpu_s,
        "clocks_exposed": clocks.exposed_s,
    }
    Path(record).write_text(json.dumps(measured), encoding="utf-8")
    return code


class Clocks:
    """Seconds by name of calls outside of other clocked calls: loading runs forwards, and counts as loading alone.

    Calls of several threads at a time add up; `exposed_s` has every moment once, for the call whose clock was attached
    first: what runs behind a forward is exposed only where no forward runs.
    """

    def __init__(self) -> None:
        self.exposed_s: dict[str, float] = {}
        self._running: dict[str, int] = {}
        """Number of calls that run now, in the order of attachment."""
        self._exposed_until = 0.0
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu_s: dict[str, float] = defaultdict(float)
        """Of the calling thread: other load on the machine changes these less."""
        self._within = threading.local()
        self._lock = threading.Lock()

    def attach(self, owner: Any, method: str, name: str) -> None:
        """Clock a method, or a module's function, from now on, in whichever thread it is called."""
        self.exposed_s[name], self._running[name] = 0.0, 0
        setattr(owner, method, self._clocked(getattr(owner, method), name))

    def _clocked(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **options: Any) -> Any:
            if getattr(self._within, "is_clocked", False):
                return call(*args, **options)
            self._within.is_clocked = True
            self._count(name, 1)
            started, cpu_started = time.monotonic(), time.thread_time()
            try:
                return call(*args, **options)
            finally:
                self._within.is_clocked = False
                with self._lock:
                    self.seconds[name] += time.monotonic() - started
                    self.cpu_s[name] += time.thread_time() - cpu_started
                self._count(name, -1)

        return timed

    def _count(self, name: str, change: int) -> None:
        """One call more or fewer runs from now on."""
        with self._lock:
            now = time.monotonic()
            exposed = next((one for one, calls in self._running.items() if calls), None)
            if exposed is not None:
                self.exposed_s[exposed] += now - self._exposed_until
            self._exposed_until = now
            self._running[name] += change
