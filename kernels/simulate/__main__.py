"""Runs the built notebook as Kaggle would: read-only inputs, no network, no access to this repository.

    python -m kernels.simulate --data DIR --weights DIR --out DIR [--layout new|old] [--time-limit S] [--memory-gb GB]
                               [--no-public] [--notebook FILE] [--python FILE]

DIR of --data is laid out like the competition's data; its test studies are the hidden test.  The notebook runs twice,
each time in a clean session: first on the public test set, which is the first study alone, then, as the scoring rerun,
on all.  OUT receives the rerun's submission.csv, run_report.json, landmarks.csv, executed.ipynb and log.txt, each whole
or not at all, and OUT/public those of the public run.  Exit code 0 only where the notebook ran through both times and
left a submission that the competition would score.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd

from kernels.build_notebook import NOTEBOOK_NAME
from kernels.commands import ends_with_a_sentence
from kernels.lumbar.run.submission import whole_file
from kernels.lumbar.run.tables import read_table
from kernels.simulate.mounting import NEEDED, SAMPLE, SimulationError, fingerprint, first_study, mount
from kernels.simulate.session import GIGABYTE, Session, execute

RESULTS = ("submission.csv", "run_report.json", "landmarks.csv", "executed.ipynb", "log.txt")
# Memory of a Kaggle notebook with two T4.
KAGGLE_MEMORY_GB = 29.0


@dataclass(frozen=True)
class Inputs:
    """A notebook, the data and weights attached to it, and the layout of the mounts."""

    data: Path
    weights: Path
    notebook: Path
    layout: str


@dataclass(frozen=True)
class SimulationOutcome:
    """Result of a run."""

    rows: int
    seconds: float
    peak_bytes: int


def check_arguments(inputs: Inputs) -> None:
    """Raises SimulationError where an input is missing."""
    for name in NEEDED:
        if not (inputs.data / name).exists():
            reason = "--data takes a folder laid out like the competition's data"
            raise SimulationError(f"{inputs.data} lacks {name}: {reason}")
    if not (inputs.weights / "manifest.json").is_file():
        raise SimulationError(f"{inputs.weights} lacks manifest.json: make the weights folder with `make package`")
    if not inputs.notebook.is_file():
        raise SimulationError(f"{inputs.notebook} is missing: build it with `make kernel`")


def find_python(name: str) -> Path:
    """Path of a Python given by path or name, links kept.  Raises SimulationError where it lacks ipykernel."""
    try:
        subprocess.run([name, "-c", "import ipykernel"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SimulationError(f"{name} is no Python that runs notebooks: install ipykernel for it") from error
    return Path(shutil.which(name) or name).absolute()


def check_submission(path: Path, sample: Path) -> int:
    """Number of rows of a submission that the competition would score.  Raises SimulationError where it would not."""
    if not path.is_file():
        raise SimulationError("the notebook wrote no submission.csv")
    expected = pd.DataFrame(read_table(sample))
    try:
        submission = pd.DataFrame(read_table(path))
    except ValueError as error:
        raise SimulationError(f"submission.csv is no table: {error}") from error
    if list(submission.columns) != list(expected.columns):
        raise SimulationError(f"submission.csv has the columns {', '.join(submission.columns)}")
    if submission["row_id"].tolist() != expected["row_id"].tolist():
        raise SimulationError("the rows of submission.csv are not those of sample_submission.csv, in its order")
    values = submission.drop(columns="row_id").apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    # Written so that NaN fails, too; text has become NaN.
    if not ((values >= 0).all() and (abs(values.sum(axis=1) - 1) < 1e-6).all()):
        raise SimulationError("submission.csv holds rows that are no probabilities: negative, NaN or not of sum 1")
    return len(submission)


def clear(out: Path) -> None:
    """Remove the results of an earlier simulation."""
    for name in RESULTS:
        (out / name).unlink(missing_ok=True)
        (out / "public" / name).unlink(missing_ok=True)
    if (out / "public").is_dir() and not any((out / "public").iterdir()):
        (out / "public").rmdir()


def deliver(root: Path, out: Path) -> None:
    """Copy the run's outputs into the output folder, each file atomically."""
    out.mkdir(parents=True, exist_ok=True)
    produced = {path.name: path for path in (root / "working").iterdir() if path.is_file()}
    produced |= {name: root / name for name in ("executed.ipynb", "log.txt")}
    for name, path in produced.items():
        with whole_file(out / name) as temporary:
            shutil.copyfile(path, temporary)


def simulate(inputs: Inputs, out: Path, session: Session) -> SimulationOutcome:
    """Run the notebook in one session: on all test studies, or on the public one.  Raises SimulationError."""
    started = time.monotonic()
    document = nbformat.read(inputs.notebook, as_version=4)
    root = Path(tempfile.mkdtemp(prefix="lumbar_simulation_"))
    try:
        for name in ("working", "home", "tmp", "site"):
            (root / name).mkdir()
        shutil.copyfile(Path(__file__).with_name("offline.py"), root / "site" / "sitecustomize.py")
        study = None if session.is_rerun else first_study(inputs.data)
        competition = mount(inputs.data, inputs.weights, root, inputs.layout, study)
        before = fingerprint(root / "input")
        try:
            peak_bytes = execute(document, root, session)
        finally:
            nbformat.write(document, root / "executed.ipynb")
            deliver(root, out)
        changed = sorted(set(before.items()) ^ set(fingerprint(root / "input").items()))
        if changed:
            raise SimulationError(f"the notebook changed its read-only inputs: {changed[0][0]}")
        rows = check_submission(out / "submission.csv", competition / SAMPLE)
        return SimulationOutcome(rows, time.monotonic() - started, peak_bytes)
    finally:
        for folder, _, _ in os.walk(root):
            os.chmod(folder, 0o755)
        shutil.rmtree(root)


def run(options: argparse.Namespace) -> None:
    """The public run and the rerun.  Raises SimulationError at the first that fails."""
    inputs = Inputs(options.data, options.weights, options.notebook, options.layout)
    check_arguments(inputs)
    python = find_python(options.python)
    clear(options.out)
    for name, out in (("public run", options.out / "public"), ("rerun", options.out)):
        is_rerun = name == "rerun"
        if not is_rerun and options.no_public:
            continue
        print(f"{name}: the notebook on {'all test studies' if is_rerun else 'the first test study'}", flush=True)
        session = Session(python, is_rerun, options.time_limit, options.memory_gb)
        try:
            outcome = simulate(inputs, out, session)
        except SimulationError as error:
            raise SimulationError(f"in the {name}: {error}") from error
        # Memory is measured on Linux only.
        memory = f", at most {outcome.peak_bytes / GIGABYTE:.1f} GB of memory" if outcome.peak_bytes else ""
        print(f"{name}: {outcome.rows} rows in {outcome.seconds:.0f} s{memory}: {out / 'submission.csv'}")


@ends_with_a_sentence("simulate", SimulationError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.simulate", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder laid out like the competition's data")
    parser.add_argument("--weights", type=Path, required=True, help="folder made by build_dataset.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--layout", choices=("new", "old"), default="new", help="Kaggle's way of mounting inputs")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="time limit given to the kernel")
    parser.add_argument(
        "--memory-gb", type=float, default=KAGGLE_MEMORY_GB, help="memory limit of the notebook (%(default)g)"
    )
    parser.add_argument("--no-public", action="store_true", help="only the rerun on all test studies")
    built = Path(__file__).resolve().parents[1] / "inference" / NOTEBOOK_NAME
    parser.add_argument("--notebook", type=Path, default=built, help="the notebook to run (kernels/inference)")
    parser.add_argument("--python", default=sys.executable, help="the Python that runs it, with ipykernel (this one)")
    run(parser.parse_args(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
