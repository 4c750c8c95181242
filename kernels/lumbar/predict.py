"""The kernel: find the data and the weights, write priors, then make the file better study by study.

`python -m kernels.lumbar.predict` and the notebook do the same.  Whatever happens after the first file is written, the
run ends with exit code 0, a complete valid submission.csv and run_report.json.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from .budget import Budget, Effort
from .competition import CompetitionNotFound, find_competition, read_series_table
from .predictor import Prediction, Predictor, read_ahead
from .priors import public_priors
from .problems import Problem
from .submission import Submission, SubmissionError, replace_json, replace_text
from .weights import WeightsError, find_manifest, manifest_digest, read_manifest

# Seconds between two replacements of submission.csv while studies come in.
WRITE_EVERY_S = 30.0
DEFAULT_TIME_LIMIT_S = 8.5 * 3600


class ForeignWeights(Exception):
    """The weights are not those that the notebook was pushed for; names both."""


class Run:
    """One run of the kernel: the table so far, and everything the report will say."""

    def __init__(self, competition: Path, out: Path, time_limit_s: float) -> None:
        self.competition, self.out = competition, out
        self.started = time.monotonic()
        self.budget = Budget(time_limit_s)
        self.submission = Submission(competition / "sample_submission.csv", public_priors())
        self.problems = [Problem("", row, "unknown-row", "keeps 1/3") for row in self.submission.unknown_rows]
        self.fallen: dict[str, list[str]] = {}
        self.efforts: Counter[Effort] = Counter()
        self.graded = 0
        self.landmarks: list[tuple[object, ...]] = []
        self.notebook: str | None = None
        self.manifest_name: str | None = None
        self.manifest_sha256: str | None = None
        self.members: list[str] = []
        self.device = "none"

    def write(self) -> None:
        """Replace submission.csv by the table so far."""
        self.submission.write(self.out / "submission.csv")

    def add(self, prediction: Prediction, effort: Effort) -> None:
        """Take in one study."""
        self.submission.set(prediction.study_id, prediction.rows)
        self.problems += prediction.problems
        self.efforts[effort] += 1
        self.graded += 1
        if prediction.fallen:
            self.fallen[prediction.study_id] = prediction.fallen
        for route, located in prediction.located.items():
            for row, (x, y, z) in located.points.items():
                confidence = round(located.confidence[row], 4)
                place = (round(float(x), 3), round(float(y), 3), round(float(z), 3))
                self.landmarks.append((prediction.study_id, route, row, *place, confidence, row in located.guessed))

    def report(self) -> dict[str, Any]:
        """What run_report.json holds."""
        return {
            "format": "lumbar-kit-run-report",
            "notebook": self.notebook,
            "manifest": self.manifest_name,
            "manifest_sha256": self.manifest_sha256,
            "device": self.device,
            "torch": torch.__version__,
            "seconds": {"total": round(time.monotonic() - self.started, 3), **self.budget.totals_s()},
            "studies": {"asked": len(self.submission.studies), "graded": self.graded},
            "members_used": self.members,
            "efforts": [{**asdict(effort), "studies": count} for effort, count in self.efforts.items()],
            "fallbacks": {
                "rows": sum(len(rows) for rows in self.fallen.values()),
                "studies": self.fallen,
                "never_graded": len(self.submission.studies) - self.graded,
            },
            "problem_counts": dict(Counter(problem.kind for problem in self.problems)),
            "problems": [asdict(problem) for problem in self.problems],
        }

    def finish(self) -> None:
        """Write the last file, the landmarks and the report."""
        self.write()
        columns = ["study_id", "route", "row", "x_mm", "y_mm", "z_mm", "confidence", "guessed"]
        replace_text(self.out / "landmarks.csv", pd.DataFrame(self.landmarks, columns=columns).to_csv(index=False))
        replace_json(self.out / "run_report.json", self.report())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the kernel.  0 = a valid submission.csv stands; 2 = no competition data; 3 = other weights than expected."""
    options = _options(argv)
    try:
        competition = options.competition or find_competition([options.input_root])
        options.out.mkdir(parents=True, exist_ok=True)
        run = Run(competition, options.out, options.time_limit)
        run.notebook = options.notebook or None
    except (CompetitionNotFound, SubmissionError) as error:
        print(f"No submission can be written: {error}", file=sys.stderr)
        return 2
    run.write()
    print(f"{len(run.submission.studies)} studies in {competition}; prior-filled submission.csv written")
    try:
        _improve(run, options)
    except ForeignWeights as error:
        run.problems.append(Problem("", "weights", "foreign-weights", str(error)))
        run.finish()
        print(f"Stopped: {error}", file=sys.stderr)
        return 3
    except Exception as error:  # noqa: BLE001 - offline, nobody can debug: the file so far must stand
        run.problems.append(Problem("", "predict", "run-cut-short", f"{type(error).__name__}: {error}"))
        traceback.print_exc()
    run.finish()
    _say(run)
    return 0


def _improve(run: Run, options: argparse.Namespace) -> None:
    """Grade study after study, as far as the clock allows."""
    try:
        roots = [options.weights] if options.weights else [options.input_root]
        path = find_manifest(roots, wanted=options.manifest or None)
        run.manifest_sha256 = manifest_digest(path)
        manifest = read_manifest(path)
    except WeightsError as error:
        run.problems.append(Problem("", "weights", "no-manifest", str(error)))
        return
    run.manifest_name = manifest.name
    _check_expected(run, options.manifest)
    run.submission.set_priors(manifest.priors)
    run.write()
    table = read_series_table(run.competition / "test_series_descriptions.csv")
    run.problems += table.problems
    device = choose_device(run.problems)
    run.device = str(device)
    started = time.monotonic()
    predictor = Predictor(manifest, path.parent, device)
    run.budget.record("load", time.monotonic() - started)
    run.problems += predictor.problems
    run.members = list(predictor.members)
    if not run.members:
        run.problems.append(Problem("", "weights", "no-usable-member", "every study keeps its prior"))
        return

    studies = run.submission.studies
    written = time.monotonic()
    images = read_ahead(run.competition / "test_images", table.series, studies, run.budget)
    for number, study in enumerate(tqdm(images, total=len(studies), unit="study", desc="grading")):
        effort = run.budget.effort(predictor.costs(), len(studies) - number)
        if effort.folds == 0:
            detail = f"{len(studies) - number} studies keep their prior"
            run.problems.append(Problem("", "clock", "out-of-time", detail))
            images.close()
            return
        run.add(predictor.predict(study, run.budget, effort), effort)
        if time.monotonic() - written > WRITE_EVERY_S:
            run.write()
            written = time.monotonic()


def _check_expected(run: Run, expected: str) -> None:
    """Raises ForeignWeights where the notebook was pushed for another manifest.

    Not in the scoring rerun: there nobody can attach others, and weights that prove themselves beat priors.
    """
    if not expected or run.manifest_sha256 == expected:
        return
    detail = (
        f"this notebook was pushed for the weights with manifest {expected}, and those attached have "
        f"{run.manifest_sha256}: attach the newest version of the weights dataset, or push the notebook again"
    )
    if not os.environ.get("KAGGLE_IS_COMPETITION_RERUN"):
        raise ForeignWeights(detail)
    run.problems.append(Problem("", "weights", "foreign-weights", detail))


def choose_device(problems: list[Problem]) -> torch.device:
    """CUDA where it really computes, else the CPU.  A GPU that this torch cannot use is a Problem, not a crash."""
    if torch.cuda.is_available():
        try:
            square = torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")
            if float(square.sum()) == 512.0:
                return torch.device("cuda")
        except RuntimeError as error:
            detail = f"{str(error).splitlines()[0]}; ask for machine_shape NvidiaTeslaT4"
            problems.append(Problem("", "device", "gpu-unusable", detail))
    return torch.device("cpu")


def _say(run: Run) -> None:
    report = run.report()
    asked, seconds = len(run.submission.studies), report["seconds"]["total"]
    print(f"graded {run.graded} of {asked} studies on {run.device} in {seconds} s")
    print(f"rows of these that kept the prior: {report['fallbacks']['rows']}; problems: {report['problem_counts']}")
    if run.graded < asked:
        print(f"{asked - run.graded} studies were not reached: all their rows keep the prior")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options; each is also an environment variable LUMBAR_<NAME>."""
    working = Path("/kaggle/working")
    defaults: dict[str, tuple[Any, Any, str]] = {
        "competition": (Path, None, "folder of the competition's files; default: found below --input-root"),
        "weights": (Path, None, "folder of manifest.json and its weights; default: found below --input-root"),
        "out": (Path, working if working.is_dir() else Path.cwd(), "folder for submission.csv and run_report.json"),
        "time-limit": (float, DEFAULT_TIME_LIMIT_S, "seconds within which the run ends"),
        "input-root": (Path, Path("/kaggle/input"), "where mounts are searched"),
        "manifest": (str, "", "sha256 of the manifest it must be; default: any of this kit"),
        "notebook": (str, "", "what the report names as the code that ran"),
    }
    parser = argparse.ArgumentParser(prog="lumbar.predict", description=__doc__)
    for name, (convert, default, text) in defaults.items():
        given = os.environ.get("LUMBAR_" + name.upper().replace("-", "_"))
        parser.add_argument(f"--{name}", type=convert, default=convert(given) if given else default, help=text)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
