"""Runs the built notebook as Kaggle would: read-only inputs, no network, none of this repository to import.

    python -m kernels.simulate --data DIR --weights DIR --out DIR [--layout new|old] [--time-limit S] [--notebook FILE]

DIR of --data is laid out like the competition's data; its test studies are the hidden test.  OUT receives
submission.csv, run_report.json, landmarks.csv, executed.ipynb and log.txt, each whole or not at all.  Exit code 0
only where the notebook ran through and its submission is one that the competition would score.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import nbformat
import pandas as pd
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from kernels.build_notebook import COMPETITION, DATASET_SLUG, NOTEBOOK_NAME

# The competition's entries.  Whatever else lies beside them (the truth of a phantom data set) stays out of sight.
NEEDED = ("test_series_descriptions.csv", "sample_submission.csv", "test_images")
OPTIONAL = ("train.csv", "train_label_coordinates.csv", "train_series_descriptions.csv", "train_images")
OWNER = "simulated-owner"
RESULTS = ("submission.csv", "run_report.json", "landmarks.csv", "executed.ipynb", "log.txt")
# A kernel that overruns is stopped, as on Kaggle; starting Python and torch is not the kernel's own time.
GRACE_S = 120.0


class SimulationError(Exception):
    """Why a simulation cannot start or did not succeed, in one sentence."""


class StreamingClient(NotebookClient):
    """A notebook client that passes on what cells print, as they print it."""

    def __init__(self, notebook: NotebookNode, root: Path, log: TextIO, timeout_s: float | None) -> None:
        manager = AsyncKernelManager(
            kernel_name="python3",
            # Only the kernel of this very environment: a user's own kernel specification may name another Python.
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            connection_file=str(root / "kernel.json"),
            transport="ipc" if os.name == "posix" else "tcp",
        )
        super().__init__(notebook, km=manager, timeout=None if timeout_s is None else math.ceil(timeout_s))
        self.stream_log = log

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        if msg["msg_type"] == "stream" and not cell.source.startswith("%%writefile"):
            text = msg["content"]["text"]
            self.stream_log.write(text)
            sys.stdout.write(text)
            sys.stdout.flush()
        return super().process_message(msg, cell, cell_index)


def check_arguments(data: Path, weights: Path, notebook: Path) -> None:
    """Raises SimulationError where a folder is not what it should be."""
    for name in NEEDED:
        if not (data / name).exists():
            raise SimulationError(f"{data} lacks {name}: --data takes a folder laid out like the competition's data")
    if not (weights / "manifest.json").is_file():
        raise SimulationError(f"{weights} lacks manifest.json: make the weights folder with `make package`")
    if not notebook.is_file():
        raise SimulationError(f"{notebook} is missing: build it with `make kernel`")


def mount(data: Path, weights: Path, root: Path, layout: str) -> None:
    """Lay the inputs out under root/input as Kaggle mounts them, read-only; nothing big is copied."""
    new = layout == "new"
    competition = root / "input" / ("competitions" if new else "") / COMPETITION
    dataset = root / "input" / (f"datasets/{OWNER}" if new else "") / DATASET_SLUG
    competition.mkdir(parents=True)
    dataset.mkdir(parents=True)
    for name in (*NEEDED, *OPTIONAL):
        source = (data / name).resolve()
        if source.is_dir():
            (competition / name).symlink_to(source)
        elif source.exists():
            shutil.copyfile(source, competition / name)
            (competition / name).chmod(0o444)
    for source in weights.iterdir():
        # Kaggle keeps the metadata to itself and skips folders.
        if source.is_file() and source.name != "dataset-metadata.json":
            _link(source.resolve(), dataset / source.name)
    for folder in (competition, dataset):
        folder.chmod(0o555)


def _link(source: Path, target: Path) -> None:
    """A second name of a file, or a copy on another file system: in either case a real file, as on Kaggle."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def fingerprint(*folders: Path) -> dict[str, tuple[int, int]]:
    """Path → size and time of change of every file, links followed: permissions do not bind every user, this does."""
    found = {}
    for folder in folders:
        for current, _, names in os.walk(folder, followlinks=True):
            for name in names:
                state = os.stat(os.path.join(current, name))
                found[os.path.join(current, name)] = (state.st_size, state.st_mtime_ns)
    return found


def environment(root: Path, time_limit_s: float | None) -> dict[str, str]:
    """The kernel's environment variables: ours without what would betray this repository or its user."""
    private = ("PYTHON", "LUMBAR_", "KAGGLE_", "JUPYTER", "IPYTHON")
    variables = {key: value for key, value in os.environ.items() if not key.startswith(private)}
    variables |= {
        "PYTHONPATH": str(root / "site"),
        "HOME": str(root / "home"),
        "IPYTHONDIR": str(root / "home" / ".ipython"),
        "TMPDIR": str(root / "tmp"),
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "LUMBAR_INPUT_ROOT": str(root / "input"),
        "LUMBAR_OUT": str(root / "working"),
    }
    if time_limit_s is not None:
        variables["LUMBAR_TIME_LIMIT"] = str(time_limit_s)
    return variables


def execute(notebook: NotebookNode, root: Path, time_limit_s: float | None) -> None:
    """Run all cells in root/working; outputs are put into `notebook`.  Raises SimulationError where a cell fails."""
    timeout_s = None if time_limit_s is None else time_limit_s + GRACE_S
    with (root / "log.txt").open("w", encoding="utf-8") as log:
        client = StreamingClient(notebook, root, log, timeout_s)
        try:
            client.execute(env=environment(root, time_limit_s), cwd=str(root / "working"), cleanup_kc=True)
        except CellExecutionError as error:
            raise SimulationError(f"a cell of the notebook failed: {error.ename}: {error.evalue}") from error
        except CellTimeoutError as error:
            raise SimulationError(f"the notebook ran {GRACE_S:.0f} s past its limit and was stopped") from error
        except DeadKernelError as error:
            raise SimulationError("the notebook's process died, most often for want of memory") from error


def check_submission(path: Path, sample: Path) -> int:
    """Number of rows of a submission that the competition would score.  Raises SimulationError where it would not."""
    if not path.is_file():
        raise SimulationError("the notebook wrote no submission.csv")
    submission, expected = pd.read_csv(path), pd.read_csv(sample)
    if list(submission.columns) != list(expected.columns):
        raise SimulationError(f"submission.csv has the columns {list(submission.columns)}")
    if submission["row_id"].tolist() != expected["row_id"].tolist():
        raise SimulationError("the rows of submission.csv are not those of sample_submission.csv, in its order")
    values = submission.drop(columns="row_id").to_numpy(dtype=float)
    # Written so that NaN fails, too.
    if not ((values >= 0).all() and (abs(values.sum(axis=1) - 1) < 1e-6).all()):
        raise SimulationError("submission.csv holds rows that are no probabilities: negative, NaN or not of sum 1")
    return len(submission)


def deliver(root: Path, out: Path) -> None:
    """Move what the run left into the output folder, each file whole or not at all, and nothing of an earlier run."""
    produced = {path.name: path for path in (root / "working").iterdir() if path.is_file()}
    produced |= {name: root / name for name in ("executed.ipynb", "log.txt")}
    for name in RESULTS:
        if name not in produced:
            (out / name).unlink(missing_ok=True)
    for name, path in produced.items():
        partial = out / f".{name}.partial"
        shutil.copyfile(path, partial)
        partial.replace(out / name)


def simulate(data: Path, weights: Path, out: Path, notebook: Path, layout: str, time_limit_s: float | None) -> int:
    """Run a notebook on a data folder; returns the number of rows it submitted.  Raises SimulationError."""
    check_arguments(data, weights, notebook)
    out.mkdir(parents=True, exist_ok=True)
    document = nbformat.read(notebook, as_version=4)
    root = Path(tempfile.mkdtemp(prefix="lumbar_simulation_"))
    try:
        for name in ("working", "home", "tmp", "site"):
            (root / name).mkdir()
        shutil.copyfile(Path(__file__).with_name("offline.py"), root / "site" / "sitecustomize.py")
        mount(data, weights, root, layout)
        before = fingerprint(root / "input")
        try:
            execute(document, root, time_limit_s)
        finally:
            nbformat.write(document, root / "executed.ipynb")
            deliver(root, out)
        changed = sorted(set(before.items()) ^ set(fingerprint(root / "input").items()))
        if changed:
            raise SimulationError(f"the notebook changed its read-only inputs: {changed[0][0]}")
        return check_submission(out / "submission.csv", data / "sample_submission.csv")
    finally:
        for folder, _, _ in os.walk(root):
            os.chmod(folder, 0o755)
        shutil.rmtree(root)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.simulate", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder laid out like the competition's data")
    parser.add_argument("--weights", type=Path, required=True, help="folder made by build_dataset.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--layout", choices=("new", "old"), default="new", help="Kaggle's way of mounting inputs")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="what the kernel is told it may take")
    built = Path(__file__).resolve().parent / "inference" / NOTEBOOK_NAME
    parser.add_argument("--notebook", type=Path, default=built, help="the notebook to run (kernels/inference)")
    options = parser.parse_args(argv)
    started = time.monotonic()
    try:
        rows = simulate(
            options.data, options.weights, options.out, options.notebook, options.layout, options.time_limit
        )
    except SimulationError as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 1
    print(f"{rows} rows in {time.monotonic() - started:.0f} s: {options.out / 'submission.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
