"""Lets Snakemake do what is to be done, shows how far it is, and says in the end what failed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from training.locks import alone
from training.workflow.costs import Costs, told
from training.workflow.gpus import GPUS
from training.workflow.grid import Grid, Step, keep_grid, remember_grid
from training.workflow.plan_and_status import todo_of
from training.workflow.staleness import Staleness
from training.workflow.step import RUN, STOPPED, WARM
from training.workflow.step_journal import is_running, read_entry

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LOOK_S = 0.3
BAR = "{desc}: {n}/{total} jobs |{bar}| {elapsed}{postfix}"
ESTIMATE_EVERY_S = 5.0
# So many failed jobs are named, each with the last line of its log.
NAMED = 10
# Of the folder of a socket, for the system takes no longer path.
LONGEST_PLACE = 80


@dataclass(frozen=True)
class Ways:
    """How a run is done."""

    gpus: int = 0
    executor: str | None = None
    """A name of profiles/, or a folder with a Snakemake profile; None = this machine."""
    threads: int | None = None
    further: tuple[str, ...] = ()
    """Given to Snakemake as they are."""


class ExecutorError(Exception):
    """An executor that is none, in one sentence."""


def run(grid: Grid, ways: Ways) -> int:
    """Do all that is to be done: 0, 1 where a job failed, 3 where it was told to stop.

    Raises BusyError, ExecutorError, and as Staleness does.
    """
    order = grid.order
    if ways.executor is not None:
        profile_of(ways.executor)
    with alone(order.runs) as lock:
        todo = todo_of(grid, Staleness(grid).verdicts())
        if not todo:
            remember_grid(grid)
            sys.stdout.write(f"nothing is to be done: all {len(grid.steps)} jobs are finished\n")
            return 0
        grid = replace(grid, todo=todo, threads=threads_of(grid, ways))
        for name in todo:
            grid.stamp(grid.steps[name]).unlink(missing_ok=True)
        command = command_of(grid, ways, keep_grid(grid))
        began = time.time()
        log = order.runs / "logs" / "snakemake.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with environment(grid, ways) as (variables, end_jobs), open(log, "ab") as stream:
            process = subprocess.Popen(
                command, env=variables, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, pass_fds=[lock]
            )
            name_holder(lock, process)
            stopped = _watch(grid, process, end_jobs, slots_of(grid, ways), ways.executor is None)
        return _say_stopped(grid) if stopped else _report(grid, began, log)


def name_holder(lock: int, process: subprocess.Popen[bytes]) -> None:
    """Write into a lock that Snakemake holds it as well, and goes on with it where we are killed alone."""
    os.ftruncate(lock, 0)
    ours = f"process {os.getpid()} on {os.uname().nodename}"
    os.write(lock, f"{ours}, or its Snakemake, process {process.pid}".encode())


def threads_of(grid: Grid, ways: Ways) -> int | None:
    """Threads of a training on this machine: one where several share its cores; a cluster's profile says its own."""
    cores = os.cpu_count() or 1
    if ways.threads is not None or ways.executor is not None:
        return ways.threads
    if ways.gpus:
        return max(1, cores // ways.gpus)
    # Of several numbers the first is that of the outermost level.
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return 1 if grid.order.jobs > 1 else int(asked) if asked.isdigit() and int(asked) else cores


def slots_of(grid: Grid, ways: Ways) -> int:
    """How many trainings run at a time."""
    return min(ways.gpus, grid.order.jobs) if ways.gpus and ways.executor is None else grid.order.jobs


def command_of(grid: Grid, ways: Ways, grid_file: Path) -> list[str]:
    """What is given to Snakemake.  Raises ExecutorError."""
    jobs = grid.order.jobs
    return [*snakemake("Snakefile", grid.own, [f"grid={grid_file}"], jobs, ways.gpus, ways.executor), *ways.further]


def snakemake(rules: str, folder: Path, config: Sequence[str], jobs: int, gpus: int, executor: str | None) -> list[str]:
    """The command that does what rules of this package ask for, `folder` being its own.  Raises ExecutorError."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(HERE / rules), "--directory", str(folder)]
    # What is to be done is decided already, and one run at a time is seen to: no locks, no marks of unfinished files.
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
            seen = variables.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
            variables[GPUS] = ",".join(seen.split(",")[:gpus])
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


@contextmanager
def environment(grid: Grid, ways: Ways) -> Iterator[tuple[dict[str, str], Callable[[], None]]]:
    """The environment of Snakemake; on this machine with a process that does its steps without importing anew.

    And what ends the jobs of this machine: they save what they have, and go on with the next run.
    """
    variables = variables_of(ways.executor, grid.threads, ways.gpus)
    if ways.executor is not None:
        yield variables, lambda: None
        return
    # The path of a socket may have about a hundred letters.
    place = "/tmp" if len(tempfile.gettempdir()) > LONGEST_PLACE else None
    folder = Path(tempfile.mkdtemp(prefix="lumbar_", dir=place))
    variables |= {WARM: str(folder / "warm"), RUN: str(os.getpid())}
    log = open(grid.order.runs / "logs" / "warm.log", "ab")
    server = subprocess.Popen(
        [sys.executable, "-m", "training.workflow.warm_process", variables[WARM]],
        env={name: value for name, value in variables.items() if name != WARM},
        stdin=subprocess.PIPE, stdout=log, stderr=log,
    )  # fmt: skip
    assert server.stdin is not None
    try:
        yield variables, server.stdin.close
    finally:
        # They are stopping already: a second Ctrl-C must not keep us from waiting for it.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        server.stdin.close()
        server.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(
    grid: Grid, process: subprocess.Popen[bytes], end_jobs: Callable[[], None], slots: int, is_here: bool
) -> bool:
    """Show how many jobs are done, and how long the others will take; returns whether a signal stopped it all."""
    left = {name: grid.stamp(grid.steps[name]) for name in grid.todo}
    stopped, estimated = False, -ESTIMATE_EVERY_S
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tqdm(total=len(left), unit="job", desc="train-all", bar_format=BAR) as bar:
        while True:
            try:
                ended = process.poll() is not None
                done = [name for name, stamp in left.items() if stamp.is_file()]
                for name in done:
                    del left[name]
                if done or time.monotonic() - estimated > ESTIMATE_EVERY_S:
                    estimated = time.monotonic()
                    bar.set_postfix_str(_time_left(grid, list(left), slots), refresh=False)
                    bar.update(len(done))
                    bar.refresh()
                if ended:
                    break
                time.sleep(LOOK_S)
            except KeyboardInterrupt:
                if not stopped:
                    theirs = "jobs already submitted go on; the next run finds them"
                    bar.write(f"stopping: {'the jobs save what they have' if is_here else theirs}")
                    process.send_signal(signal.SIGINT)
                    end_jobs()
                stopped = True
    signal.signal(signal.SIGTERM, before)
    return stopped and bool(left)


def _time_left(grid: Grid, left: Sequence[str], slots: int) -> str:
    todo = {name: tuple(one for one in grid.todo[name] if one in left) for name in left}
    left_s, unknown = Costs(grid).time_left_s(todo, slots)
    return f"{told(left_s if unknown < len(left) or not left else None)} left"


def _say_stopped(grid: Grid) -> int:
    done = sum(grid.stamp(grid.steps[name]).is_file() for name in grid.todo)
    text = f"train-all was stopped: {done} of {len(grid.todo)} jobs are finished; the same command goes on there\n"
    sys.stderr.write(text)
    return STOPPED


def _report(grid: Grid, began: float, log: Path) -> int:
    """Say what failed, and what could not be done for that; 0 where all is done."""
    missing = [grid.steps[name] for name in grid.todo if not grid.stamp(grid.steps[name]).is_file()]
    if not missing:
        sys.stdout.write(f"all {len(grid.steps)} jobs are finished, {len(grid.todo)} of them now\n")
        return 0
    failed = [step for step in missing if _was_tried(grid, step, began)]
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
    """The last line of a log that says something."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    except OSError:
        return "it left no log"
    return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "its log is empty")
