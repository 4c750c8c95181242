"""The kernel: find data and weights, write priors, then improve submission.csv round by round.

`python -m kernels.lumbar.predict` and the notebook do the same.  After the first file is written, any failure ends with
exit code 0, a complete valid submission.csv and run_report.json.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from .answers.priors import public_priors
from .options import RESTART, STARTED, parser
from .problems import Problem, outcome
from .run import output_check
from .run.clock import Clock
from .run.competition import CompetitionNotFound, find_competition, read_series_table
from .run.in_progress import InProgress
from .run.report import counts, merged, replace_report, study_lines
from .run.submission import Submission, SubmissionError, replace_text
from .run.tables import table_text

if TYPE_CHECKING:
    import torch

    from .run.results import Results
    from .run.rounds import Round

# Seconds between two replacements of submission.csv.
WRITE_EVERY_S = 30.0
# After a restart, as the kernel may be killed again.
WRITE_EVERY_RESTARTED_S = 5.0
# Upper bound of the seconds of imports, should the machine's clock be wrong.
LONGEST_START_S = 600.0


class ForeignWeights(Exception):
    """Other weights than those that the notebook was pushed for; the message has both digests."""


class Stopped(Exception):
    """SIGTERM or SIGINT was received."""


class KernelRun:
    """State of one run: the submission so far, and everything for the report."""

    def __init__(self, competition: Path, out: Path, time_limit_s: float) -> None:
        self.competition, self.out = competition, out
        self.started = time.monotonic()
        self.clock = Clock(time_limit_s - _spent_s())
        self.submission = Submission(competition / output_check.SAMPLE, public_priors())
        self.problems = [Problem("", row, "unknown-row", "keeps 1/3") for row in self.submission.unknown_rows]
        self.results: Results | None = None
        self.rounds: list[Round] = []
        self.precision: dict[str, str] = {}
        self.notebook: str | None = None
        self.manifest_sha256: str | None = None
        self.devices: list[torch.device] = []
        self.torch_version, self.threads = "none", 0
        self._written = 0.0

    @property
    def progress(self) -> Path | None:
        """Folder of a supervised kernel's progress, which a restart resumes from."""
        return self.out / output_check.PROGRESS if RESTART in os.environ else None

    @property
    def is_restart(self) -> bool:
        """Whether an earlier kernel was killed, and may have left a better file than the priors'."""
        return os.environ.get(RESTART, "0") != "0"

    def write(self) -> None:
        """Replace submission.csv, and save the progress.  A full disk leaves the last complete file: a Problem."""
        try:
            self.submission.write(self.out / output_check.SUBMISSION)
            if self.results and self.manifest_sha256 and self.progress and self.progress.is_dir():
                self.results.save(self.progress / output_check.STORE, self.manifest_sha256)
        except OSError as error:
            self._unwritten(error)
        self._written = time.monotonic()

    def keep(self, studies: Sequence[str]) -> None:
        """Copy the results of some studies into the submission, and write it from time to time."""
        assert self.results is not None
        for study in studies:
            self.submission.set(study, self.results.rows(study)[0])
        if time.monotonic() - self._written > (WRITE_EVERY_RESTARTED_S if self.is_restart else WRITE_EVERY_S):
            self.write()

    def _unwritten(self, error: OSError) -> None:
        detail = f"{type(error).__name__}: {error.strerror}: the last complete one stands"
        if (problem := Problem("", "disk", "file-not-replaced", detail)) not in self.problems:
            self.problems.append(problem)
            print(f"A file could not be replaced: {detail}", file=sys.stderr)

    def report(self) -> dict[str, Any]:
        """What run_report.json holds."""
        results = self.results
        problems = merged([*self.problems, *(results.problems if results else ())])
        graded = results.graded() if results else []
        priors = {study: results.rows(study)[1] for study in graded} if results else {}
        fallbacks = {study: rows for study, rows in priors.items() if rows}
        guessed = results.guessed_rows() if results else {}
        studies, imputed = self.submission.studies, results.imputed() if results else {}
        prior_rows = {study: len(rows) for study, rows in priors.items()}
        unstacked = {study: rows for study in graded if results and (rows := results.unstacked(study))}
        by_mixture = {"rows": sum(len(rows) for rows in unstacked.values()), "studies": unstacked}
        names = [artefact.member.name for artefact in results.manifest.artefacts] if results else []
        return {
            "format": "lumbar-kit-run-report",
            "notebook": self.notebook,
            "manifest": results.manifest.name if results else None,
            "manifest_sha256": self.manifest_sha256,
            "device": ", ".join(map(str, self.devices)) or "none",
            "torch": self.torch_version,
            "threads": self.threads,
            "seconds": {"total": round(time.monotonic() - self.started, 3), **self.clock.totals_s()},
            "studies": {"asked": len(studies), "graded": len(graded)},
            "members_used": [name for name in names if results and name in results.used],
            "precision": self.precision,
            "rounds": [asdict(one) for one in self.rounds],
            "fallbacks": {
                "rows": sum(len(rows) for rows in fallbacks.values()),
                "studies": fallbacks,
                "never_graded": len(studies) - len(graded),
                "guessed": {"rows": sum(len(rows) for rows in guessed.values()), "studies": guessed},
                **({"unstacked": by_mixture} if results and results.manifest.stacker else {}),
            },
            "domain": results.domain() if results else {},
            "by_study": study_lines(studies, prior_rows, imputed, self.clock.study_seconds(), problems),
            "problem_counts": counts(problems),
            "problems": problems,
        }

    def write_report(self) -> dict[str, Any]:
        """Write run_report.json; returns what it holds."""
        report = self.report()
        try:
            replace_report(self.out / output_check.REPORT, report)
        except OSError as error:
            self._unwritten(error)
        return report

    def finish(self) -> dict[str, Any]:
        """Write the last file, the landmarks and the report; returns the report."""
        if self.progress is not None:
            output_check.remove_progress(self.out)
        self.write()
        columns = ("study_id", "route", "row", "x_mm", "y_mm", "z_mm", "confidence", "guessed")
        text = table_text(columns, self.results.landmark_table() if self.results else ())
        try:
            replace_text(self.out / "landmarks.csv", text)
        except OSError as error:
            self._unwritten(error)
        return self.write_report()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the kernel.

    0 = a valid submission.csv is there; 2 = no competition data, or no place to write; 3 = other weights than expected;
    4 = all devices are lost, and a new process can resume.
    """
    options = parser().parse_args(argv)
    try:
        competition = options.competition or find_competition([options.input_root])
        options.out.mkdir(parents=True, exist_ok=True)
        run = KernelRun(competition, options.out, options.time_limit)
        run.notebook = options.notebook or None
        if not run.is_restart or output_check.submission_fault(options.out, competition / output_check.SAMPLE):
            run.submission.write(options.out / output_check.SUBMISSION)
    except (CompetitionNotFound, SubmissionError, OSError) as error:
        print(f"No submission can be written: {error}", file=sys.stderr)
        return 2
    print(f"test studies in {competition}: {len(run.submission.studies)}; submission.csv is complete from here on")
    are_devices_lost = False
    try:
        are_devices_lost = _improve(run, options)
    except ForeignWeights as error:
        run.problems.append(Problem("", "weights", "foreign-weights", str(error)))
        run.finish()
        print(f"Stopped: {error}", file=sys.stderr)
        return 3
    except Exception as error:  # noqa: BLE001 - no one can debug an offline run: keep the file so far
        run.problems.append(Problem("", "predict", "run-cut-short", f"{type(error).__name__}: {error}"))
        traceback.print_exc()
    if are_devices_lost and run.progress is not None:
        run.write()
        run.write_report()
        return 4
    report = run.finish()
    print(f"{outcome(report)}\nthe run took {report['seconds']['total']:.1f} s on {report['device']}")
    return 0


@contextmanager
def _without_collections() -> Iterator[None]:
    """Around the first import of torch: without garbage collections, then and later, of all that it makes.

    They would take a tenth of the start-up.
    """
    if "torch" in sys.modules:  # a process that does more than this run
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _improve(run: KernelRun, options: argparse.Namespace) -> bool:
    """Run the networks of the manifest round by round, within the time limit; whether all devices are lost."""
    with _without_collections():  # imported only now: by then the first file is written
        import torch

        from .networks.devices import choose_devices
        from .networks.weights import WeightsError, find_manifest, manifest_digest, read_manifest
        from .run.results import Results
        from .run.rounds import DevicesLost, Resources, Rounds
    run.torch_version, run.threads = torch.__version__, torch.get_num_threads()
    try:
        roots = [options.weights] if options.weights else [options.input_root]
        path = find_manifest(roots, wanted=options.manifest or None)
        run.manifest_sha256 = manifest_digest(path)
        manifest = read_manifest(path)
    except WeightsError as error:
        run.problems.append(Problem("", "weights", "no-manifest", str(error)))
        return False
    _check_expected(run, options.manifest)
    run.submission.set_priors(manifest.priors)
    table = read_series_table(run.competition / "test_series_descriptions.csv")
    run.problems += table.problems
    run.results = Results(manifest, run.submission.studies)
    in_progress = InProgress()
    if run.progress is not None:
        run.progress.mkdir(exist_ok=True)
        in_progress = InProgress(run.progress / output_check.IN_PROGRESS)
        if run.results.restore(run.progress / output_check.STORE, run.manifest_sha256):
            run.keep(run.results.graded())
    run.write()
    run.devices = choose_devices(run.problems, options.devices)
    resources = Resources(run.clock, run.devices, in_progress, max(options.batch, 0) or None, options.patience)
    rounds = Rounds(run.results, path.parent, run.competition / "test_images", table.series, resources)
    run.rounds, run.precision = rounds.done, rounds.precision
    if not rounds.schedule.order:
        run.problems.append(
            Problem("", "weights", "no-job", "no grader of a route has a weight: every study keeps its prior")
        )
    try:
        rounds.run(run.keep)
    except DevicesLost as error:
        run.problems.append(Problem("", "device", "devices-lost", str(error)))
        return True
    if not run.results.used and rounds.unusable:
        run.problems.append(Problem("", "weights", "no-usable-member", "every study keeps its prior"))
    return False


def _check_expected(run: KernelRun, expected: str) -> None:
    """Raises ForeignWeights where the notebook was pushed for another manifest.

    In the scoring rerun it is a Problem only: others cannot be attached there, and verified weights beat priors.
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


def _spent_s() -> float:
    """Seconds since the supervisor started this process: imports count towards the time limit."""
    started = os.environ.get(STARTED, "")
    return min(max(time.time() - float(started), 0.0), LONGEST_START_S) if started else 0.0


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(f"signal {signal.Signals(number).name}")


def run_process() -> NoReturn:
    """Run the kernel as a process: signals end it in order, and its exit waits for no thread."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads that timed out may still run, and the interpreter would wait for them.
    os._exit(code)


if __name__ == "__main__":
    run_process()
