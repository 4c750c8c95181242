"""One shard's kernel, as Snakemake calls it: on one GPU of its own where LUMBAR_GPUS names some.

python -m training.workflow.run_shard OUT/shards/0000 WEIGHTS --time-limit SECONDS
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kernels.locks import hold
from kernels.lumbar import supervise
from training.runs import read_object
from training.workflow.gpus import one_gpu
from training.workflow.shards import REPORT

LOCK = "shard.lock"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the kernel's exit code."""
    parser = argparse.ArgumentParser(prog="training.workflow.run_shard", description=__doc__)
    parser.add_argument("shard", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--time-limit", type=float, required=True)
    options = parser.parse_args(argv)
    with hold(options.shard / LOCK):  # after a process of an earlier, killed run that has not ended
        return _answer(options.shard, options.weights, options.time_limit)


def _answer(shard: Path, weights: Path, time_limit_s: float) -> int:
    """Run the kernel.  Its output becomes the shard's answers only if no signal stopped it."""
    for old in shard.glob("unfinished*"):
        shutil.rmtree(old, ignore_errors=True)
    # Snakemake waits for a report: the report of a kernel that failed must not appear there.
    # The name is new each time, as a process that a killed run left may still write into its own.
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished_", dir=shard))
    unfinished.chmod(0o755)
    given = ["--competition", str(shard / "competition"), "--weights", str(weights)]
    with one_gpu(shard.parents[1] / ".workflow"):
        code = supervise.main([*given, "--out", str(unfinished), "--time-limit", str(time_limit_s)])
    if code or not (unfinished / REPORT).is_file():
        sys.stderr.write(f"the kernel of shard {shard.name} ended with code {code}: see the lines above\n")
        return code or 1
    if was_stopped(unfinished / REPORT):
        sys.stderr.write(f"the kernel of shard {shard.name} was stopped by a signal\n")
        return 1
    shutil.rmtree(shard / "out", ignore_errors=True)
    os.replace(unfinished, shard / "out")
    return 0


def was_stopped(report: Path) -> bool:
    """Whether a signal ended the kernel before its work was done: then many rows only keep their priors."""
    endings = read_object(report).get("supervision", [])
    return any(str(one.get("reason", "")).endswith("was passed on") for one in endings)


if __name__ == "__main__":
    sys.exit(main())
