"""What stands when the kernel's process has ended: is the file complete, and what the report says of the end.

pandas takes more memory than all the rest of the watching process: it is imported here only once the kernel has ended.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SUBMISSION, REPORT, SAMPLE = "submission.csv", "run_report.json", "sample_submission.csv"
PROGRESS, STORE, IN_PROGRESS = ".progress", "store.npz", "in_progress.json"


def find_sample(competition: Path | None, input_root: Path) -> Path | None:
    """The sample_submission.csv that says which rows are asked for; None where there is not exactly one."""
    from .competition import CompetitionNotFound, find_competition

    try:
        return (competition or find_competition([input_root])) / SAMPLE
    except (CompetitionNotFound, OSError):
        return None


def submission_fault(out: Path, sample: Path | None) -> str:
    """Why the submission in a folder cannot be handed in; empty where it is complete and valid."""
    import pandas as pd

    from .submission import SubmissionError, check

    try:
        frame = pd.read_csv(out / SUBMISSION, dtype={"row_id": str}, keep_default_na=False)
        check(frame, _row_ids(sample) or list(frame["row_id"]))
    except KeyError:
        return f"{SUBMISSION} has no column row_id"
    except (OSError, ValueError, SubmissionError) as error:
        return str(error)
    return ""


def _row_ids(sample: Path | None) -> list[str]:
    """The rows that are asked for; none where nobody can say any more, as a mount failed: then the file's own count."""
    from ..answers.priors import public_priors
    from .submission import Submission, SubmissionError

    try:
        return [] if sample is None else Submission(sample, public_priors()).row_ids
    except SubmissionError:
        return []


def write_priors(out: Path, sample: Path) -> str:
    """Write a submission of the public priors; why it could not be, or nothing."""
    from ..answers.priors import public_priors
    from .submission import Submission, SubmissionError

    try:
        out.mkdir(parents=True, exist_ok=True)
        Submission(sample, public_priors()).write(out / SUBMISSION)
    except (OSError, SubmissionError) as error:
        return str(error)
    return ""


def forget(out: Path) -> None:
    """Remove what an earlier run left: this one's kernel may die before it has its own, and that is no answer to it."""
    for name in (REPORT, SUBMISSION):
        with contextlib.suppress(OSError):
            (out / name).unlink(missing_ok=True)
    forget_progress(out)


def progress_mark(out: Path) -> tuple[int, ...]:
    """Changes where a kernel has got on: studies done, or another one found that kills it."""
    marks = []
    for name in (STORE, IN_PROGRESS):
        try:
            marks += [(out / PROGRESS / name).stat().st_mtime_ns]
        except OSError:
            marks += [0]
    return tuple(marks)


def forget_progress(out: Path) -> None:
    """Remove what a kernel keeps for the next start; out of the way first, as threads that it gave up still write."""
    gone = out / f"{PROGRESS}.gone"
    with contextlib.suppress(OSError):
        (out / PROGRESS).rename(gone)
    for folder in (gone, out / PROGRESS):
        shutil.rmtree(folder, ignore_errors=True)


def add_to_report(
    out: Path, supervision: Sequence[Mapping[str, Any]], problems: Sequence[Mapping[str, str]], seconds: float
) -> None:
    """Merge into the run's report how its process ended; without a report write a small one.  Raises OSError."""
    from .submission import replace_json

    report = _read_report(out) or _small_report(out, seconds)
    report["supervision"] = list(supervision)
    report["problems"] = [*report.get("problems", []), *problems]
    report["problem_counts"] = dict(Counter(one["kind"] for one in report["problems"]))
    out.mkdir(parents=True, exist_ok=True)
    replace_json(out / REPORT, report)


def _read_report(out: Path) -> dict[str, Any] | None:
    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the kernel died before it wrote one
        return None
    return report if isinstance(report, dict) else None


def _small_report(out: Path, seconds: float) -> dict[str, Any]:
    """What is known where the kernel never came to its own report: nothing is said to be graded."""
    try:
        rows = (out / SUBMISSION).read_text(encoding="utf-8").splitlines()[1:]
    except (OSError, ValueError):
        rows = []
    asked = len({row.partition("_")[0] for row in rows})
    return {
        "format": "lumbar-kit-run-report",
        "notebook": None,
        "manifest": None,
        "manifest_sha256": None,
        "device": "unknown",
        "seconds": {"total": round(seconds, 3)},
        "studies": {"asked": asked, "graded": 0},
        "members_used": [],
        "fallbacks": {"rows": 0, "studies": {}, "never_graded": asked},
        "problem_counts": {},
        "problems": [],
    }
