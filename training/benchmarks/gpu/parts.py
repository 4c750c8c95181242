"""The parts in their order of value, each in a process of its own: one that hangs or dies costs only itself."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from training.benchmarks import process
from training.benchmarks.tables import Record

HERE = __package__
Stage = Literal["first", "together", "alone"]
# A part begins nothing new in this last share of its seconds.
RESERVE = 0.15
# With less than this left no part is begun.
LEAST_S = 10.0
# Cores for each of the parts that run together.
CORES_A_PART = 4
# Where the CPU replaces the device, parts may take so many times as long.
SLOWER_ON_CPU = 4.0


class Setting(BaseModel, frozen=True):
    """Where a part works, on what, and how long it may."""

    work: Path
    """Folder for phantom, packages and runs; shared by all parts."""
    device: str
    """cuda or cpu"""
    small: bool
    """Least studies and networks: shows that it runs."""
    foreign: Path | None = None
    """A package that another machine exported, perhaps with another torch."""
    seconds: float = 600.0
    """Time limit of the part."""
    started: float = Field(default_factory=time.monotonic, exclude=True)

    @property
    def data(self) -> Path:
        """The phantom, in the competition's layout."""
        return self.work / "data"

    @property
    def package(self) -> Path:
        """The package of all systems."""
        return self.work / "package"

    @property
    def is_late(self) -> bool:
        """Whether nothing new should be begun."""
        return time.monotonic() - self.started > self.seconds * (1 - RESERVE)


@dataclass(frozen=True)
class Part:
    """One measurement."""

    name: str
    call: str
    """module:function, called with Setting and Record."""
    seconds: float
    """Time limit."""
    stage: Stage
    """first: what others need, all at once; together: some at a time, as their results do not depend on speed; alone:
    one after the other."""


PARTS = (
    Part("machine", f"{HERE}.forwards:machine", 60, "first"),
    Part("data", f"{HERE}.prepare:make_data", 120, "first"),
    Part("package", f"{HERE}.prepare:make_five_systems", 200, "first"),
    Part("parity", f"{HERE}.kernel_answers:parity_of_packages", 120, "together"),
    Part("submission", f"{HERE}.kernel_answers:on_both_devices", 150, "together"),
    Part("workers", f"{HERE}.kernel_answers:with_workers", 120, "together"),
    Part("memory_cap", f"{HERE}.robustness:memory_cap", 120, "together"),
    Part("killed", f"{HERE}.robustness:killed", 150, "together"),
    Part("train", f"{HERE}.robustness:stopped_training", 200, "together"),
    Part("stages", f"{HERE}.kernel_answers:stages", 60, "alone"),
    Part("full_networks", f"{HERE}.full_networks:measure", 100, "alone"),
    Part("steps", f"{HERE}.optimiser_steps:measure", 60, "alone"),
    Part("variants", f"{HERE}.forwards:variants", 80, "alone"),
)


@dataclass(frozen=True)
class PartResult:
    """How a part ended, and its results until then."""

    name: str
    seconds: float
    failure: str
    """Empty where it ran to its end."""
    found: dict[str, Any]
    """As of Record.save."""
    log_tail: str = ""

    @property
    def faults(self) -> list[str]:
        """Results outside of their limits."""
        return list(self.found.get("faults", []))

    @property
    def is_good(self) -> bool:
        """Whether it ran to its end without a fault."""
        return not self.failure and not self.faults

    def text(self) -> str:
        """Its tables, its faults, and the last lines of its log if it failed."""
        lines = [f"== {self.name}: {self.failure or ('FAULTS' if self.faults else 'good')}, {self.seconds:.0f} s"]
        lines += [table["text"] for table in self.found.get("tables", [])]
        lines += [f"FAULT {fault}" for fault in self.faults]
        return "\n".join([*lines, *([self.log_tail] if self.failure else [])])

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"seconds": round(self.seconds, 1), "failure": self.failure, **self.found, "log_tail": self.log_tail}


def run_parts(
    parts: Sequence[Part],
    setting: Setting,
    end: float,
    report: Callable[[PartResult], None],
    at_once: int | None = None,
) -> list[PartResult]:
    """All parts, stage by stage, until `end` (time.monotonic); each result is passed to `report` at once."""
    together = at_once or max(1, (os.cpu_count() or 1) // CORES_A_PART)
    results: list[PartResult] = []
    for stage, workers in (("first", max(together, 2)), ("together", together), ("alone", 1)):
        chosen = [part for part in parts if part.stage == stage]
        with ThreadPoolExecutor(workers) as pool:
            for one in _in_time(pool, chosen, setting, end):
                report(one)
                results.append(one)
    return results


def _in_time(pool: ThreadPoolExecutor, parts: Sequence[Part], setting: Setting, end: float) -> Iterable[PartResult]:
    def run(part: Part) -> PartResult:
        left_s = end - time.monotonic()
        if left_s < LEAST_S:
            return PartResult(part.name, 0.0, "no time was left", {})
        slower = SLOWER_ON_CPU if setting.device == "cpu" else 1.0
        return _run_part(part, setting, min(part.seconds * slower, left_s))

    for done in [pool.submit(run, part) for part in parts]:
        yield done.result()


def _run_part(part: Part, setting: Setting, seconds: float) -> PartResult:
    folder = setting.work / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    found, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    found.unlink(missing_ok=True)
    limited = setting.model_copy(update={"seconds": seconds}).model_dump_json()
    ended = process.call(f"{__name__}:measure_part", [part.call, limited, found], log, timeout_s=seconds)
    failure = f"timed out after {seconds:.0f} s" if ended.code is None else ""
    if ended.code:
        failure = f"FAILED with code {ended.code}"
    results = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else {}
    return PartResult(part.name, ended.seconds, failure, results, ended.log_tail)


def measure_part(call: str, setting: str, record: str) -> None:
    """Run a part in this process; its results go to the file `record`."""
    module, _, function = call.partition(":")
    results = Record(Path(record))
    getattr(importlib.import_module(module), function)(Setting.model_validate_json(setting), results)
    results.save()
