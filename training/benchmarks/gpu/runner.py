"""Runs parts, each in a process of its own: one that hangs or dies costs only itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .parts import Part
from .setting import Setting

ROOT = Path(__file__).resolve().parents[3]
# With less than this left no part is begun.
LEAST_S = 10.0
SHOWN_LINES = 14
# Cores that parts which run together have each.
CORES_A_PART = 4
# Where the CPU stands in for the device, parts may take so many times as long.
SLOWER_ON_CPU = 4.0


@dataclass(frozen=True)
class Ended:
    """How a part ended, and what it found until then."""

    name: str
    seconds: float
    failure: str
    """Empty where it ran to its end."""
    found: dict[str, Any]
    log_tail: str = ""

    @property
    def faults(self) -> list[str]:
        """What is not as it must be."""
        return list(self.found.get("faults", []))

    @property
    def is_good(self) -> bool:
        """Whether it ran to its end and found no fault."""
        return not self.failure and not self.faults

    def text(self) -> str:
        """For people: its tables, its faults, and the last lines of one that failed."""
        lines = [f"== {self.name}: {self.failure or ('FAULTS' if self.faults else 'good')}, {self.seconds:.0f} s"]
        lines += [table["text"] for table in self.found.get("tables", [])]
        lines += [f"FAULT {fault}" for fault in self.faults]
        return "\n".join([*lines, *([self.log_tail] if self.failure else [])])

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"seconds": round(self.seconds, 1), "failure": self.failure, **self.found, "log_tail": self.log_tail}


def run_part(part: Part, setting: Setting, seconds: float) -> Ended:
    """Run one part for so many seconds at most."""
    folder = setting.work / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    found, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    found.unlink(missing_ok=True)
    told = replace(setting, seconds=seconds).to_json()
    command = [sys.executable, "-m", f"{__package__}.child", part.call, told, str(found)]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    started, failure = time.monotonic(), ""
    with log.open("wb") as stream:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            if code := child.wait(seconds):
                failure = f"FAILED with code {code}"
        except subprocess.TimeoutExpired:
            failure = f"ended after {seconds:.0f} s"
        finally:
            _end_group(child)
    known = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else {}
    return Ended(part.name, time.monotonic() - started, failure, known, _tail(log))


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End a part and what it has started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # nothing is left
        pass
    child.wait()


def _tail(log: Path) -> str:
    """The last lines, without those of progress bars."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([line[:300] for line in lines if "it/s" not in line and "s/it" not in line][-SHOWN_LINES:])


def run_parts(
    parts: Sequence[Part], setting: Setting, end: float, said: Callable[[Ended], None], at_once: int | None = None
) -> list[Ended]:
    """All parts, stage by stage, until `end` (time.monotonic); `said` hears of each as it ends."""
    together = at_once or max(1, (os.cpu_count() or 1) // CORES_A_PART)
    ended: list[Ended] = []
    for stage, workers in (("first", max(together, 2)), ("together", together), ("alone", 1)):
        chosen = [part for part in parts if part.stage == stage]
        with ThreadPoolExecutor(workers) as pool:
            for one in _in_time(pool, chosen, setting, end):
                said(one)
                ended.append(one)
    return ended


def _in_time(pool: ThreadPoolExecutor, parts: Sequence[Part], setting: Setting, end: float) -> Iterable[Ended]:
    def run(part: Part) -> Ended:
        left_s = end - time.monotonic()
        if left_s < LEAST_S:
            return Ended(part.name, 0.0, "no time was left", {})
        slower = SLOWER_ON_CPU if setting.device == "cpu" else 1.0
        return run_part(part, setting, min(part.seconds * slower, left_s))

    for done in [pool.submit(run, part) for part in parts]:
        yield done.result()
