"""The command lines of the benchmarks: what they have in common."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch

from kernels.lumbar.run.submission import replace_json
from kernels.profiles import PROFILES
from training.benchmarks.tables import Table
from training.phantom.dataset import Options, make_dataset


def speed_parser(module: str, doc: str) -> argparse.ArgumentParser:
    """Options of a benchmark of speed."""
    parser = argparse.ArgumentParser(prog=f"training.benchmarks.{module}", description=doc.splitlines()[0])
    parser.add_argument("--data", type=Path, help="data in the competition's layout; default: a phantom, full-size")
    parser.add_argument("--out", type=Path, help="JSON file for all tables")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--quick", action="store_true", help="least of everything: shows that it works")
    return parser


def trained_parser(module: str, doc: str, outputs: str) -> argparse.ArgumentParser:
    """Options of a benchmark of trained networks on a phantom; `outputs`: the files that it leaves in --out."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"training.benchmarks.{module}", description=doc, formatter_class=formatter)
    parser.add_argument("--data", type=Path, required=True, help="a phantom data set")
    parser.add_argument("--runs", type=Path, required=True, help="where training left its runs")
    parser.add_argument("--recipes", nargs="*", default=[], help="names of training/recipes; default: all")
    parser.add_argument("--profile", choices=PROFILES, default="bench")
    parser.add_argument("--fold", type=int, default=0, help="the fold whose networks are measured")
    parser.add_argument("--out", type=Path, help=f"folder for {outputs}; default: --runs")
    return parser


def run_bench(
    name: str,
    options: argparse.Namespace,
    phantom: Options,
    jobs: int,
    bench: Callable[[Path, Path], list[Table]],
    errors: tuple[type[Exception], ...],
) -> int:
    """Measure with one thread, on --data or on a phantom; print and keep the tables.  The exit code: 1 after `errors`.

    `bench`: gets the data and a scratch folder.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    started_s = time.monotonic()
    expected: tuple[type[Exception], ...] = (*errors, OSError)
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = options.data
            if data is None:
                data = Path(folder) / "phantom"
                make_dataset(data, phantom, jobs=jobs)
            load_before = os.getloadavg()[0]
            found = bench(data, Path(folder))
    except expected as error:
        sys.stderr.write(f"{name} stopped: {error}\n")
        return 1
    about = {
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "load_before": round(load_before, 2),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "python": platform.python_version(),
        "seconds": round(time.monotonic() - started_s),
    }
    tables = [table.text(options.markdown) for table in found]
    sys.stdout.write("\n\n".join([*tables, ", ".join(f"{name} {value}" for name, value in about.items())]) + "\n")
    if options.out:
        replace_json(options.out, {"machine": about, "tables": {table.key: table.record() for table in found}})
    return 0
