"""One training session on Kaggle: find the data, copy the runs of an earlier session, train until the time limit.

    python -m training.session --recipes a b [--profile full] [--folds 0 1] [--time-limit SECONDS] [--resume]

Exit codes as of training.train_all: 0 = everything is trained, 3 = time limit, the next session resumes.  OUT/runs has
all that packaging needs, and session.json, by which the next session finds it; decoded stacks are kept elsewhere.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from kernels.commands import ends_with_a_sentence
from kernels.lumbar.run.competition import search_folders
from kernels.lumbar.run.submission import replace_json
from training import train_all
from training.data.external import PRETRAINING
from training.data.tables import TABLES
from training.recipe_schema.schema import RecipeError
from training.runs import DONE

INPUT_ROOT = Path("/kaggle/input")
DATA_MARKERS = TABLES[:2]
STATE = "session.json"
RUNS_MARKERS = (f"runs/{STATE}",)
log = logging.getLogger("session")


class SessionError(Exception):
    """A session that cannot start, with the mounted folders."""


def find_folder(root: Path, markers: Sequence[str], remedy: str) -> Path:
    """The one folder with these marker files.  Raises SessionError for none or several."""
    found, _ = search_folders([root], markers)
    if len(found) == 1:
        return found[0]
    listing = ", ".join(str(folder) for folder in (found or sorted(root.glob("*/*")))[:20]) or "nothing"
    reason = "more than one folder holds" if found else "no folder holds"
    raise SessionError(f"{reason} {' and '.join(markers)}; below {root} there is {listing}: {remedy}")


def copy_runs(earlier: Path, runs: Path) -> int:
    """Copy the runs of an earlier session's output; returns the number of finished networks."""
    for path in sorted((earlier / "runs").rglob("*")):
        target = runs / path.relative_to(earlier / "runs")
        if path.is_file():  # without its mode: inputs are read-only
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return len(list(runs.rglob(DONE)))


def run(options: argparse.Namespace) -> int:
    """Train; OUT/runs/session.json has the exit code, null for a killed session.  Raises SessionError, RecipeError."""
    data = find_folder(options.input_root, DATA_MARKERS, "attach the competition to this notebook")
    runs = options.out / "runs"
    if options.resume:
        remedy = "attach the one earlier output of this notebook, or push it without --resume"
        earlier = find_folder(options.input_root, RUNS_MARKERS, remedy)
        log.info("%d networks were finished in %s", copy_runs(earlier, runs), earlier)
    if not torch.cuda.is_available():
        log.warning("there is no GPU: training takes many times as long")
    given = ["--data", str(data), "--runs", str(runs), "--recipes", *options.recipes, "--profile", options.profile]
    given += ["--time-limit", str(options.time_limit), "--folds", *map(str, options.folds)]
    if coordinates := search_folders([options.input_root], (PRETRAINING,))[0]:
        given += ["--coordinates", str(coordinates[0])]
    keep_state(options, None, 0.0)
    started, code = time.monotonic(), 1
    try:
        with tempfile.TemporaryDirectory(prefix="lumbar_cache_") as cache:
            code = train_all.main([*given, "--cache", cache])
    finally:
        keep_state(options, code, time.monotonic() - started)
    return code


def keep_state(options: argparse.Namespace, code: int | None, seconds: float) -> None:
    """Write OUT/runs/session.json.  Raises RecipeError for an unknown recipe or fold."""
    runs = options.out / "runs"
    done, left = train_all.progress(runs, options.recipes, options.profile, options.folds)
    runs.mkdir(parents=True, exist_ok=True)
    replace_json(runs / STATE, {"code": code, "seconds": round(seconds), "finished": done, "left": left})


@ends_with_a_sentence("session", SessionError, RecipeError)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the environment may name the two folders as for the kernel's own runs."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(prog="training.session", description=__doc__)
    parser.add_argument("--recipes", nargs="+", required=True)
    parser.add_argument("--profile", default="full")
    parser.add_argument("--folds", nargs="*", type=int, default=[], help="default: those of the recipe")
    parser.add_argument("--time-limit", type=float, required=True, help="seconds after which no epoch is begun")
    parser.add_argument("--resume", action="store_true", help="an earlier output is attached, and must be")
    parser.add_argument("--input-root", type=Path, default=Path(os.environ.get("LUMBAR_INPUT_ROOT", INPUT_ROOT)))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("LUMBAR_OUT", Path.cwd())))
    options = parser.parse_args(argv)
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
