"""Any number of studies through the kernel, in shards run by Snakemake: on this machine, or on a cluster.

    python -m training.workflow.predict_shards --data DIR --weights DIR --out OUT [--shards N] [--jobs N]
        [--executor slurm|kubernetes|shell|DIR] [--time-limit SECONDS]

DIR is a folder in the competition's layout, or any folder of STUDY/SERIES/*.dcm.  The merged submission has the bytes
of a single run; on a CPU of one with as many threads, which is one unless OMP_NUM_THREADS is more.  The same command
resumes where it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels.commands import ends_with_a_sentence
from kernels.locks import BusyError, alone, terminate_holder
from kernels.lumbar.networks.weights import MANIFEST_FILE, WeightsError, manifest_digest, read_manifest
from kernels.lumbar.problems import outcome
from training.recipe_schema.schema import RecipeError
from training.workflow.engine import (
    THREAD_LIMITS,
    Driver,
    ExecutorError,
    last_line,
    profile_of,
    snakemake,
    variables_of,
)
from training.workflow.gpus import gpus_here
from training.workflow.grid import refuse_braces
from training.workflow.run_shard import LOCK
from training.workflow.shards import REPORT, ShardError, merge, split
from training.workflow.step import STOPPED

DEFAULT_TIME_LIMIT_S = 24 * 3600.0


@ends_with_a_sentence("predict stopped", ShardError, WeightsError, BusyError, ExecutorError, RecipeError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line.  Exit code 1: a shard failed, or an order is invalid; one sentence names it and the reason.

    3: a signal stopped it.
    """
    parser = argparse.ArgumentParser(prog="training.workflow.predict_shards", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the competition's layout, or STUDY/SERIES/*.dcm")
    parser.add_argument("--weights", type=Path, required=True, help="folder of manifest.json and its weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="kernels at a time")
    parser.add_argument("--executor", help="where kernels run, in place of this machine")
    parser.add_argument("--time-limit", type=float, default=DEFAULT_TIME_LIMIT_S, help="seconds of each kernel")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        raise ShardError(f"JOBS is the number of kernels at a time, 1 or more, not {options.jobs}")
    refuse_braces(options.out.resolve())
    if options.executor is not None:
        profile_of(options.executor)
    digest = manifest_digest(_manifest(options.weights))
    with alone(options.out) as lock:
        shards = split(options.data, options.out, options.shards, digest)
        stopped, failed = _run(options, shards, lock)
        if stopped and failed:
            done = sum((shard / "out" / REPORT).is_file() for shard in shards)
            answered = f"{done} of {len(shards)} shards are answered"
            sys.stderr.write(f"predict was stopped: {answered}; the same command resumes there\n")
            return STOPPED
        if failed:
            sys.stderr.write(f"predict: {failed}; the same command resumes there\n")
            return 1
        report = merge(options.out)
    without = f", {report['without_series']} of all have no usable series" if report["without_series"] else ""
    sys.stdout.write(f"{options.out / 'submission.csv'} of {len(shards)} shards{without}: {outcome(report)}\n")
    return 0


def _manifest(weights: Path) -> Path:
    path = weights / MANIFEST_FILE
    if not path.is_file():
        raise WeightsError(f"{weights} holds no {MANIFEST_FILE}: WEIGHTS= is what `make package` wrote")
    read_manifest(path)
    return path


def _run(options: argparse.Namespace, shards: Sequence[Path], lock: int) -> tuple[bool, str]:
    """Run the kernels that have not answered yet: whether a signal stopped them; what failed, or nothing."""
    out, gpus = options.out.resolve(), 0 if options.executor else gpus_here()
    own, log = out / ".workflow", out / "logs" / "snakemake.log"
    for folder in (own, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    config = [f"out={out}", f"shards={len(shards)}", f"weights={options.weights.resolve()}"]
    config += [f"time_limit={options.time_limit}"]
    command = snakemake("predict.smk", own, config, options.jobs, gpus, options.executor)
    # The same whatever the number of shards and jobs: on a CPU the last bits of an answer depend on it.
    variables = variables_of(options.executor, os.environ.get(THREAD_LIMITS[0]) or "1", gpus)
    is_local = options.executor is None
    reports = {shard.name: shard / "out" / REPORT for shard in shards}

    def end_kernels() -> None:
        for shard in shards if is_local else ():
            terminate_holder(shard / LOCK)

    stopped = Driver(command, variables, log, lock, is_local).run(reports, "predict", "shard", end_kernels)
    missing = [name for name, report in reports.items() if not report.is_file()]
    if not missing:
        return stopped, ""
    logs = [path for name in missing if (path := log.with_name(f"{name}.log")).is_file()]
    where = [*logs, log][0]
    return stopped, f"{len(missing)} of {len(shards)} shards have no answers: {last_line(where)} ({where})"


if __name__ == "__main__":
    sys.exit(main())
