"""The last attempt at each step: for the run table, for estimates, and so that none is done twice at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from kernels.locks import hold, is_held
from kernels.lumbar.run.submission import replace_json
from training.fitting.time_limit import OutOfTime
from training.runs import read_object
from training.workflow.grid import Grid, Step


@dataclass(frozen=True)
class Entry:
    """The last attempt at a step."""

    state: str
    """running, finished, failed or stopped; one that is "running" without a process was killed."""
    began: float
    """Seconds since 1970."""
    seconds: float = 0.0
    longest_s: float = 0.0
    """Of all finished attempts: later ones may have found everything done."""
    device: str = ""
    says: str = ""
    """Why it failed."""


def _place(grid: Grid, step: Step, suffix: str) -> Path:
    return grid.own / "journal" / f"{step.name}{suffix}"


def read_entry(grid: Grid, step: Step) -> Entry | None:
    """The last attempt at a step, if there was one."""
    try:
        return Entry(**read_object(_place(grid, step, ".json")))
    except TypeError:  # none, or of another format
        return None


def is_running(grid: Grid, step: Step) -> bool:
    """Whether a process runs the step, by its lock file, which a killed process does not hold."""
    return is_held(_place(grid, step, ".lock"))


@contextmanager
def attempt(grid: Grid, step: Step, device: str) -> Iterator[None]:
    """Record how a step goes; waits for a process of an earlier, killed run that still executes the same step."""
    path = _place(grid, step, ".json")
    with hold(_place(grid, step, ".lock")):
        before = read_entry(grid, step)
        entry = Entry("running", time.time(), longest_s=before.longest_s if before else 0.0, device=device)
        replace_json(path, asdict(entry))
        started, state, reason = time.monotonic(), "finished", ""
        try:
            yield
        except BaseException as error:
            state, reason = "stopped" if isinstance(error, OutOfTime) else "failed", str(error) or type(error).__name__
            raise
        finally:
            seconds = round(time.monotonic() - started, 2)
            longest_s = max(entry.longest_s, seconds) if state == "finished" else entry.longest_s
            replace_json(path, asdict(Entry(state, entry.began, seconds, longest_s, device, reason)))
