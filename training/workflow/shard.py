"""One shard's kernel, as Snakemake calls it: on one GPU of its own where a run said which there are.

python -m training.workflow.shard OUT/shards/0000 WEIGHTS --time-limit SECONDS
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels.lumbar import supervise
from training.shards import REPORT
from training.workflow.gpus import one_gpu


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the kernel's exit code."""
    parser = argparse.ArgumentParser(prog="training.workflow.shard", description=__doc__)
    parser.add_argument("shard", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--time-limit", type=float, required=True)
    options = parser.parse_args(argv)
    # A report is what the workflow waits for: that of a kernel that could not answer must not stand for an answer.
    unfinished = options.shard / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    given = ["--competition", str(options.shard / "competition"), "--weights", str(options.weights)]
    with one_gpu(options.shard.parents[1] / ".workflow"):
        code = supervise.main([*given, "--out", str(unfinished), "--time-limit", str(options.time_limit)])
    if code or not (unfinished / REPORT).is_file():
        sys.stderr.write(f"the kernel of shard {options.shard.name} ended with code {code}: see the lines above\n")
        return code or 1
    shutil.rmtree(options.shard / "out", ignore_errors=True)
    os.replace(unfinished, options.shard / "out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
