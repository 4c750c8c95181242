"""Makes one crop cache, and says what that took.

    python -m training.benchmarks.data_path_child FILE DATA CACHE JOBS RECIPE PROFILE

FILE gets seconds and peak memory.  The cache is made in a process forked from this small one: the peak memory of a
process counts from what its parent had at its start.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Memory is counted in KiB, on macOS in bytes.
MIB = 1 << 20 if sys.platform == "darwin" else 1 << 10


def make(record: Path, data: Path, cache: Path, jobs: int, recipe: str, profile: str) -> None:
    """Make the cache of a recipe; seconds and the peak memory of the largest decoding process are left in a file."""
    from training.data.cache.crop_cache import build_cache, requests_of
    from training.data.tables import read_tables
    from training.recipe.load import load_named

    tables = read_tables(data)
    requests = requests_of(load_named(recipe, profile).members())  # type: ignore[arg-type]
    started, before = time.monotonic(), os.times()
    build_cache(data, tables, requests, cache, jobs)
    after = os.times()
    taken = {
        "wall_s": time.monotonic() - started,
        "cpu_s": sum(after[:4]) - sum(before[:4]),
        "decoder_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / MIB,
        "bytes": sum(file.stat().st_size for file in cache.iterdir()),
    }
    record.write_text(json.dumps(taken), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit code of the process that makes the cache."""
    record, data, cache, jobs, recipe, profile = sys.argv[1:] if argv is None else argv
    child = os.fork()
    if child == 0:
        code = 1
        try:
            make(Path(record), Path(data), Path(cache), int(jobs), recipe, profile)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        taken = json.loads(Path(record).read_text(encoding="utf-8"))
        Path(record).write_text(json.dumps({**taken, "peak_mib": usage.ru_maxrss / MIB}), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
