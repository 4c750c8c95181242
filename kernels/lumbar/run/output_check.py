"""Validate submission.csv after the kernel exits, fall back to priors, record the exit in run_report.json.

NumPy takes more memory than the rest of the supervisor: it is imported in functions that run after the kernel.
"""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..labels import split_row_ids

SUBMISSION, REPORT, SAMPLE = "submission.csv", "run_report.json", "sample_submission.csv"
PROGRESS, STORE, IN_PROGRESS = ".progress", "store.npz", "in_progress.json"


def find_sample(competition: Path | None, input_root: Path) -> Path | None:
    """The competition's sample_submission.csv; None where there is not exactly one."""
    from .competition import CompetitionNotFound, find_competition

    try:
        return (competition or find_competition([input_root])) / SAMPLE
    except (CompetitionNotFound, OSError):
        return None


def submission_fault(out: Path, sample: Path | None) -> str:
    """Why the submission in a folder is invalid; empty where it is complete and valid.

    Without a readable sample, as after a failed mount, its rows are not compared.
    """
    from .submission import SubmissionError, check, read_row_ids
    from .tables import read_table

    try:
        table = read_table(out / SUBMISSION)
        row_ids: list[str] = []
        with contextlib.suppress(SubmissionError):
            row_ids = [] if sample is None else read_row_ids(sample)
        check(table, row_ids or table["row_id"])
    except KeyError:
        return f"{SUBMISSION} has no column row_id"
    except (OSError, ValueError, SubmissionError) as error:
        return str(error)
    return ""


def write_priors(out: Path, sample: Path) -> str:
    """Write a submission of the public priors; returns the error, or nothing."""
    from ..answers.priors import public_priors
    from .submission import Submission, SubmissionError

    try:
        out.mkdir(parents=True, exist_ok=True)
        Submission(sample, public_priors()).write(out / SUBMISSION)
    except (OSError, SubmissionError) as error:
        return str(error)
    return ""


def remove_outputs(out: Path) -> None:
    """Remove the files of an earlier run, which must not pass for those of this one if its kernel dies early."""
    for name in (REPORT, SUBMISSION):
        with contextlib.suppress(OSError):
            (out / name).unlink(missing_ok=True)
    remove_progress(out)


def progress_mark(out: Path) -> tuple[int, ...]:
    """Modification times of the progress files (0 = missing): they change if a kernel got further before it died."""
    marks = []
    for name in (STORE, IN_PROGRESS):
        try:
            marks.append((out / PROGRESS / name).stat().st_mtime_ns)
        except OSError:
            marks.append(0)
    return tuple(marks)


def remove_progress(out: Path) -> None:
    """Remove the saved progress; renamed first, as threads that timed out may still write to it."""
    removed = out / f"{PROGRESS}.gone"
    with contextlib.suppress(OSError):
        (out / PROGRESS).rename(removed)
    for folder in (removed, out / PROGRESS):
        shutil.rmtree(folder, ignore_errors=True)


def add_to_report(
    out: Path, supervision: Sequence[Mapping[str, Any]], problems: Sequence[Mapping[str, str]], seconds: float
) -> None:
    """Merge the supervisor's records into the run's report, or into a minimal one.  Raises OSError."""
    from .report import counts, replace_report

    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the kernel died before it wrote one
        report = None
    if not report or not isinstance(report, dict):
        report = _minimal_report(out, seconds)
    report["supervision"] = list(supervision)
    report["problems"] = [*report.get("problems", []), *problems]
    report["problem_counts"] = counts(report["problems"])
    out.mkdir(parents=True, exist_ok=True)
    replace_report(out / REPORT, report)


def _minimal_report(out: Path, seconds: float) -> dict[str, Any]:
    """The report of a kernel that wrote none: no study counts as graded."""
    try:
        rows = list(csv.reader((out / SUBMISSION).read_text(encoding="utf-8").splitlines()))[1:]
    except (OSError, ValueError, csv.Error):
        rows = []
    asked = len({study for study, _ in split_row_ids(row[0] for row in rows if row)})
    return {
        "format": "lumbar-kit-run-report",
        "notebook": None,
        "manifest": None,
        "manifest_sha256": None,
        "device": "unknown",
        "seconds": {"total": round(seconds, 3)},
        "studies": {"asked": asked, "graded": 0},
        "members_used": [],
        "fallbacks": {"rows": 0, "studies": {}, "never_graded": asked, "guessed": {"rows": 0, "studies": {}}},
        "by_study": {},
        "problem_counts": {},
        "problems": [],
    }
