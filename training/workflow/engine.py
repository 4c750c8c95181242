"""Runs Snakemake on rules of this package with a bar of what is done; for the grid, reports what failed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from kernels.locks import alone, name_holder
from kernels.text import duration_text
from training.runs import remove_checkpoints
from training.workflow.costs import Costs
from training.workflow.gpus import GPUS
from training.workflow.grid import Grid, Step, keep_grid, remember_grid
from training.workflow.plan_and_status import todo_of
from training.workflow.staleness import Staleness
from training.workflow.step import RUN, STOPPED, WARM
from training.workflow.step_journal import is_running, read_entry

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
POLL_S = 0.3
BAR = "{desc}: {n}/{total} {unit}s |{bar}| {elapsed}{postfix}"
REFRESH_S = 5.0
# So many failed jobs are named, each with the last line of its log.
NAMED = 10
# Letters of the folder of a socket: the path of a socket may have about a hundred.
LONGEST_PLACE = 80


@dataclass(frozen=True)
class ExecutionOptions:
    """Where and with what a run's jobs are executed."""

    gpus: int = 0
    executor: str | None = None
    """A name of profiles/, or a folder with a Snakemake profile; None = this machine."""
    threads: int | None = None
    further: tuple[str, ...] = ()
    """Given to Snakemake as they are."""


class ExecutorError(Exception):
    """An executor that is unknown or cannot be used, in one sentence."""


def run(grid: Grid, execution: ExecutionOptions) -> int:
    """Do all that is to be done: 0, 1 where a job failed, 3 where a signal stopped it.

    Raises BusyError, ExecutorError, and as Staleness does.
    """
    order = grid.order
    if execution.executor is not None:
        profile_of(execution.executor)
    with alone(order.runs) as lock:
        verdicts = Staleness(grid).verdicts()
        for name, verdict in verdicts.items():
            if verdict.done and grid.steps[name].member:  # a kill may have come between done.json and this
                remove_checkpoints(grid.network_folder(grid.steps[name]))
        todo = todo_of(grid, verdicts)
        if not todo:
            remember_grid(grid)
            sys.stdout.write(f"nothing is to be done: all {len(grid.steps)} jobs are finished\n")
            return 0
        grid = grid.model_copy(update={"todo": todo, "threads": threads_of(grid, execution)})
        stamps = {name: grid.stamp(grid.steps[name]) for name in todo}
        for stamp in stamps.values():
            stamp.unlink(missing_ok=True)
        config, slots = [f"grid={keep_grid(grid)}"], slots_of(grid, execution)
        command = snakemake("Snakefile", grid.own, config, order.jobs, execution.gpus, execution.executor)
        command += execution.further
        began, log = time.time(), order.runs / "logs" / "snakemake.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with warm_process(grid, execution, lock) as (variables, end_jobs):
            driver = Driver(command, variables, log, lock, execution.executor is None)
            stopped = driver.run(stamps, "train-all", "job", end_jobs, lambda left: _time_left(grid, left, slots))
        missing = [name for name, stamp in stamps.items() if not stamp.is_file()]
        if stopped and missing:
            done = f"{len(todo) - len(missing)} of {len(todo)} jobs are finished"
            sys.stderr.write(f"train-all was stopped: {done}; the same command resumes there\n")
            return STOPPED
        return _report(grid, missing, began, log)


def threads_of(grid: Grid, execution: ExecutionOptions) -> int | None:
    """Threads of a training on this machine: one where several share its cores; None on a cluster."""
    cores = os.cpu_count() or 1
    if execution.threads is not None or execution.executor is not None:
        return execution.threads
    if execution.gpus:
        return max(1, cores // execution.gpus)
    # Of several numbers the first is that of the outermost level.
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return 1 if grid.order.jobs > 1 else int(given) if given.isdigit() and int(given) else cores


def slots_of(grid: Grid, execution: ExecutionOptions) -> int:
    """How many trainings run at a time."""
    return min(execution.gpus, grid.order.jobs) if execution.gpus and execution.executor is None else grid.order.jobs


def snakemake(rules: str, folder: Path, config: Sequence[str], jobs: int, gpus: int, executor: str | None) -> list[str]:
    """The Snakemake command for rules of this package, run in `folder`.  Raises ExecutorError."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(HERE / rules), "--directory", str(folder)]
    # What is to be done is decided already, and RUNS/.lock admits one run: no locks, no marks of unfinished files.
    command += ["--keep-going", "--nolock", "--ignore-incomplete", "--drop-metadata", "--rerun-triggers", "mtime"]
    command += ["--scheduler", "greedy", "--config", *config]
    if executor is not None:
        return [*command, "--workflow-profile", str(profile_of(executor)), "--jobs", str(jobs)]
    command += [*(["gpu=1", "--resources", f"gpu={gpus}"] if gpus else []), "--workflow-profile", "none"]
    return [*command, "--cores", str(jobs)]


def variables_of(executor: str | None, threads: int | str | None, gpus: int) -> dict[str, str]:
    """The environment of Snakemake and its jobs; on this machine with the threads and GPUs that they may use."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "LUMBAR_PYTHON": sys.executable}
    if executor is None:
        variables |= dict.fromkeys(THREAD_LIMITS, str(threads))
        if gpus:
            visible = variables.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
            variables[GPUS] = ",".join(visible.split(",")[:gpus])
    return variables


def profile_of(executor: str) -> Path:
    """The folder of an executor's profile.  Raises ExecutorError."""
    for folder in (HERE / "profiles" / executor, Path(executor)):
        if (folder / "config.yaml").is_file():
            return folder.resolve()
    known = ", ".join(sorted(path.name for path in (HERE / "profiles").iterdir()))
    raise ExecutorError(
        f"there is no executor '{executor}'; there are: {known}, or a folder with a config.yaml of yours"
    )


@dataclass(frozen=True)
class Driver:
    """One call of Snakemake."""

    command: Sequence[str]
    variables: Mapping[str, str]
    log: Path
    lock: int
    """File descriptor of the run's lock: Snakemake holds it too, and continues if this process alone is killed."""
    is_local: bool
    """Whether jobs are processes of this machine, which end with the run."""

    def run(
        self,
        results: Mapping[str, Path],
        title: str,
        unit: str,
        end_jobs: Callable[[], None],
        time_left: Callable[[Sequence[str]], str] | None = None,
    ) -> bool:
        """Run Snakemake with a bar of the results that are there; returns whether a signal stopped it.

        `results`: file by the name of its job.  `end_jobs`: called again and again after a signal, as jobs may just
        have begun.  `time_left`: in words, of the jobs that are left.
        """
        stopped = is_passed_on = False
        refresh_s = -math.inf

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal stopped
            stopped = True

        bar_format = BAR if time_left else None
        with (
            _on_signals(stop),
            open(self.log, "ab") as stream,
            tqdm(total=len(results), unit=unit, desc=title, bar_format=bar_format) as bar,
        ):
            process = subprocess.Popen(
                self.command, env=self.variables, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                pass_fds=[self.lock],
            )  # fmt: skip
            name_holder(self.lock, f", or its Snakemake, process {process.pid}")
            while True:
                has_ended = process.poll() is not None
                left = [name for name, path in results.items() if not path.is_file()]
                done = len(results) - len(left)
                if done != bar.n or time.monotonic() > refresh_s:
                    refresh_s = time.monotonic() + REFRESH_S
                    bar.n = done
                    if time_left:
                        bar.set_postfix_str(time_left(left), refresh=False)
                    bar.refresh()
                if has_ended:
                    return stopped
                if stopped and not is_passed_on:
                    is_passed_on = True
                    process.send_signal(signal.SIGINT)
                    submitted = "jobs already submitted continue; the next run finds them"
                    bar.write(f"stopping: {'the jobs save what they can' if self.is_local else submitted}")
                if stopped:
                    end_jobs()
                time.sleep(POLL_S)


@contextmanager
def _on_signals(handler: Any) -> Iterator[None]:
    """Let a handler take SIGINT and SIGTERM while the block runs."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def warm_process(
    grid: Grid, execution: ExecutionOptions, lock: int
) -> Iterator[tuple[dict[str, str], Callable[[], None]]]:
    """The environment of Snakemake; on this machine with a process that does its steps without importing anew.

    And what ends the jobs of this machine: they save their state, and the next run resumes them.  The process and its
    jobs hold the lock of RUNS too: after a kill no other run begins while one of them still writes.
    """
    variables = variables_of(execution.executor, grid.threads, execution.gpus)
    if execution.executor is not None:
        yield variables, lambda: None
        return
    place = "/tmp" if len(tempfile.gettempdir()) > LONGEST_PLACE else None
    with (
        tempfile.TemporaryDirectory(prefix="lumbar_", dir=place, ignore_cleanup_errors=True) as folder,
        open(grid.order.runs / "logs" / "warm.log", "ab") as log,
    ):
        socket = str(Path(folder) / "warm")
        server = subprocess.Popen(
            [sys.executable, "-m", "training.workflow.step", "--serve", socket],
            env=variables, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[lock],
        )  # fmt: skip
        assert server.stdin is not None
        try:
            yield variables | {WARM: socket, RUN: str(os.getpid())}, server.stdin.close
        finally:
            with _on_signals(signal.SIG_IGN):  # it is stopping already: a second Ctrl-C must not end the wait for it
                server.stdin.close()
                server.wait()


def _time_left(grid: Grid, left: Sequence[str], slots: int) -> str:
    todo = {name: tuple(one for one in grid.todo[name] if one in left) for name in left}
    left_s, unknown = Costs(grid).time_left_s(todo, slots)
    return f"{duration_text(left_s if unknown < len(left) or not left else None)} left"


def _report(grid: Grid, missing: Sequence[str], began: float, log: Path) -> int:
    """Print what failed and how many steps wait for it; 0 where all is done."""
    if not missing:
        sys.stdout.write(f"all {len(grid.steps)} jobs are finished, {len(grid.todo)} of them now\n")
        return 0
    failed = [step for name in missing if _was_tried(grid, step := grid.steps[name], began)]
    if not failed:
        sys.stderr.write(f"train-all stopped: Snakemake ended before its first job: {last_line(log)} ({log})\n")
        return 1
    named = "; ".join(f"{step.name}: {last_line(grid.log(step))} ({grid.log(step)})" for step in failed[:NAMED])
    more = f"; and {len(failed) - NAMED} others" if len(failed) > NAMED else ""
    waiting = len(missing) - len(failed)
    follow = f"; {waiting} that need them were not begun" if waiting else ""
    sys.stderr.write(f"train-all: {len(failed)} of {len(grid.todo)} jobs failed: {named}{more}{follow}\n")
    return 1


def _was_tried(grid: Grid, step: Step, began: float) -> bool:
    entry = read_entry(grid, step)
    return entry is not None and entry.began >= began and not is_running(grid, step)


def last_line(log: Path) -> str:
    """The last line of a log that is not blank."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    except OSError:
        return "it left no log"
    return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "its log is empty")
