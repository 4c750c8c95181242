"""One training session on Kaggle: find the data, take up what an earlier session left, train until the time is up.

    python -m training.session --recipes a b [--profile full] [--folds 0 1] [--time-limit SECONDS] [--resume]

Ends as training.train_all does: 0 = everything is trained, 3 = the time is up and the next session goes on.  All that
packaging takes is in OUT/runs, beside session.json, by which the next session knows it; crops stay out of it.
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

from kernels.lumbar.run.competition import search_folders
from kernels.lumbar.run.submission import replace_json
from training import train_all
from training.data.external import PRETRAINING
from training.recipe.schema import RecipeError

INPUT_ROOT = Path("/kaggle/input")
# Outside of its output a session has some 60 GB, of which libraries and published weights take some.
CROPS_GB = 50
DATA_MARKERS = ("train.csv", "train_series_descriptions.csv")
STATE = "session.json"
RUNS_MARKERS = (f"runs/{STATE}",)
log = logging.getLogger("session")


class SessionError(Exception):
    """Why a session cannot start, with what is mounted."""


def find_folder(root: Path, markers: Sequence[str], remedy: str) -> Path:
    """The one folder with these markers.  Raises SessionError where there is none, or more than one."""
    found, _ = search_folders([root], markers)
    if len(found) == 1:
        return found[0]
    listing = ", ".join(str(folder) for folder in (found or sorted(root.glob("*/*")))[:20]) or "nothing"
    reason = "more than one folder holds" if found else "no folder holds"
    raise SessionError(f"{reason} {' and '.join(markers)}; below {root} there is {listing}: {remedy}")


def take_up(earlier: Path, runs: Path) -> int:
    """Copy the runs of an earlier session's output; returns how many networks are finished there."""
    for path in sorted((earlier / "runs").rglob("*")):
        target = runs / path.relative_to(earlier / "runs")
        if path.is_file():  # without its mode: inputs are read-only
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return len(list(runs.rglob("done.json")))


def run(options: argparse.Namespace) -> int:
    """Train; OUT/runs/session.json says how it ended, or null of a killed one.  Raises SessionError, RecipeError."""
    data = find_folder(options.input_root, DATA_MARKERS, "attach the competition to this notebook")
    runs = options.out / "runs"
    if options.resume:
        remedy = "attach the one earlier output of this notebook, or push it without --resume"
        earlier = find_folder(options.input_root, RUNS_MARKERS, remedy)
        log.info("%d networks were finished in %s", take_up(earlier, runs), earlier)
    if not torch.cuda.is_available():
        log.warning("there is no GPU: training takes many times as long")
    given = ["--data", str(data), "--runs", str(runs), "--recipes", *options.recipes, "--profile", options.profile]
    given += ["--time-limit", str(options.time_limit), "--folds", *map(str, options.folds)]
    if coordinates := search_folders([options.input_root], (PRETRAINING,))[0]:
        given += ["--coordinates", str(coordinates[0])]
    keep_state(options, None, 0.0)
    started, code = time.monotonic(), 1
    try:
        with tempfile.TemporaryDirectory(prefix="lumbar_crops_") as cache:
            code = train_all.main([*given, "--cache", cache, "--cache-gb", str(CROPS_GB)])
    finally:
        keep_state(options, code, time.monotonic() - started)
    return code


def keep_state(options: argparse.Namespace, code: int | None, seconds: float) -> None:
    """Write OUT/runs/session.json.  Raises RecipeError for a recipe or a fold that is none."""
    runs = options.out / "runs"
    done, left = train_all.progress(runs, options.recipes, options.profile, options.folds)
    runs.mkdir(parents=True, exist_ok=True)
    replace_json(runs / STATE, {"code": code, "seconds": round(seconds), "finished": done, "left": left})


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
    try:
        return run(options)
    except (SessionError, RecipeError) as error:
        sys.stderr.write(f"session: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
