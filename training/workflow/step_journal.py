"""What each step did last, when and where: for the run table, for estimates, and so that none is done twice at once."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from kernels.lumbar.run.submission import replace_json
from training.fitting.time_limit import OutOfTime
from training.locks import is_held
from training.workflow.grid import Grid, Step


@dataclass(frozen=True)
class Entry:
    """The last attempt at a step."""

    state: str
    """running, finished, failed or stopped; one that says running and is not was killed."""
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
        return Entry(**json.loads(_place(grid, step, ".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_running(grid: Grid, step: Step) -> bool:
    """Whether a process is at it: the operating system says so, and no killed process is taken for a living one."""
    return is_held(_place(grid, step, ".lock"))


@contextmanager
def attempt(grid: Grid, step: Step, device: str) -> Iterator[None]:
    """Write down how a step goes; waits for a process of an earlier, killed run that is still at the same step."""
    path = _place(grid, step, ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(_place(grid, step, ".lock"), "a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        before = read_entry(grid, step)
        longest_s = before.longest_s if before else 0.0
        began, started = time.time(), time.monotonic()
        replace_json(path, asdict(Entry("running", began, 0.0, longest_s, device)))
        try:
            yield
        except BaseException as error:
            seconds = round(time.monotonic() - started, 2)
            state = "stopped" if isinstance(error, OutOfTime) else "failed"
            says = str(error) or type(error).__name__
            replace_json(path, asdict(Entry(state, began, seconds, longest_s, device, says)))
            raise
        seconds = round(time.monotonic() - started, 2)
        replace_json(path, asdict(Entry("finished", began, seconds, max(longest_s, seconds), device)))
