"""A notebook's run on Kaggle: wait for its end, download its outputs, and verify its report."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kernels.build_notebook import PACKAGE, read_modules, sources_digest
from kernels.lumbar.labels import ROWS
from kernels.lumbar.problems import outcome
from kernels.lumbar.run.submission import SubmissionError, check
from kernels.whole_folder import whole_folder

from .client import KaggleError, Polling, query
from .dataset import Package
from .pushes import url_of

COMMAND = "make push"
ENDED_WELL = "complete"
ENDED_BADLY = ("error", "cancel_acknowledged", "cancel_requested")
# Outputs of a training are some GB.
FETCH_TIMEOUT_S = 4 * 3600.0
# Lines of a failed run's log that are shown.
LOG_TAIL = 15
# What every report says of a run.
NUMBERS = (("seconds", "total"), ("studies", "asked"), ("studies", "graded"), ("fallbacks", "rows"))


class UnusableKernelRun(KaggleError):
    """A run that must not be submitted, so that the next push makes another."""


@dataclass(frozen=True)
class Pushed:
    """A version of a notebook on Kaggle."""

    ref: str
    version: int

    def __str__(self) -> str:
        return f"{self.ref} version {self.version}"


def finish_run(pushed: Pushed, ship: Path, polling: Polling) -> dict[str, Any]:
    """Wait for the run's end, download its outputs into SHIP/run, and return its report.  Raises KaggleError.

    Kaggle may return outputs of an earlier version of the notebook, with another digest of the modules: it waits on.
    """
    expected = sources_digest(read_modules(PACKAGE))
    print(f"{pushed}: follow its run at {url_of(pushed.ref)}", flush=True)

    def state() -> tuple[str, dict[str, Any] | None]:
        status, message = run_status(pushed)
        if status not in (ENDED_WELL, *ENDED_BADLY):
            return status, None
        folder = fetch_outputs(pushed, ship / "run")
        if status != ENDED_WELL:
            raise UnusableKernelRun(failure(pushed, status, message, folder))
        report = read_report(folder)
        is_current = report.get("notebook") == expected
        return (status, report) if is_current else ("the outputs of another version", None)

    return polling.wait(str(pushed), state, COMMAND)


def run_status(pushed: Pushed) -> tuple[str, str]:
    """A run's status in lower case, and its failure message.  Raises KaggleError."""
    answer = query("kernels", "status", f"{pushed.ref}/{pushed.version}")
    found = re.search(r'has status "(?:\w+\.)?(\w+)"', answer.text)
    if not found:
        raise KaggleError(f"`{answer.command}` printed no status: {answer.text}")
    message = re.search(r'Failure message: "(.*)"', answer.text)
    return found.group(1).lower(), message.group(1) if message else ""


def fetch_outputs(pushed: Pushed, folder: Path) -> Path:
    """Download the outputs and log of this version's run into a folder, which is replaced.  Raises KaggleError."""
    with whole_folder(folder) as partial:
        what = ("kernels", "output", f"{pushed.ref}/{pushed.version}", "-p", str(partial))
        query(*what, "-o", "-q", "--page-size", "200", timeout_s=FETCH_TIMEOUT_S)
    return folder


def read_report(folder: Path) -> dict[str, Any]:
    """The run's run_report.json, where a submission.csv lies beside it.  Raises UnusableKernelRun."""
    if not (folder / "submission.csv").is_file():
        raise UnusableKernelRun(f"the run left no submission.csv: see {folder}; `{COMMAND}` pushes again")
    try:
        report: dict[str, Any] = json.loads((folder / "run_report.json").read_text())
        for part, name in NUMBERS:
            if not isinstance(report[part][name], int | float):
                raise ValueError(f"{part}.{name} is {report[part][name]!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableKernelRun(f"the run left no run_report.json that can be read ({error}): see {folder}") from error
    return report


def failure(pushed: Pushed, status: str, message: str, folder: Path, command: str = COMMAND) -> str:
    """Why a run failed: its status, its message and the end of its log."""
    detail = f": {message}" if message else ""
    lines = [line for log in folder.glob("*.log") for line in log_lines(log.read_text(errors="replace"))]
    tail = "".join(f"\n    {line}" for line in lines[-LOG_TAIL:])
    return f"the run of {pushed} ended with '{status}'{detail}; once mended, `{command}` pushes again{tail}"


def log_lines(text: str) -> list[str]:
    """The lines a notebook printed; Kaggle's log is a JSON list of them, or plain text."""
    try:
        text = "".join(str(event["data"]) for event in json.loads(text))
    except (ValueError, TypeError, KeyError):
        pass  # plain text, as it is
    return [line for line in text.splitlines() if line.strip()]


def check_report(report: dict[str, Any], package: Package, gpu: bool) -> None:
    """Raises UnusableKernelRun where a run that ended well had other weights or no GPU."""
    digest = package.digest
    used = report.get("manifest_sha256")
    if used != digest:
        raise UnusableKernelRun(
            f"the run had the weights {used or 'of no manifest'}, not {digest}: `make upload`, then `{COMMAND}`"
        )
    if gpu and not str(report.get("device", "")).startswith("cuda"):
        unusable = [one["detail"] for one in report.get("problems", []) if one.get("kind") == "gpu-unusable"]
        reason = unusable[0] if unusable else "is the week's quota used up?"
        raise UnusableKernelRun(
            f"the run had no GPU ({reason}): `{COMMAND}` tries again, `{COMMAND} GPU=no` does without one"
        )


def shortcomings(report: dict[str, Any], package: Package, folder: Path) -> list[str]:
    """What a run failed to do on the public studies, and would on the hidden ones, a phrase each."""
    studies, graded = report["studies"]["asked"], report["studies"]["graded"]
    used = set(report.get("members_used") or [])
    idle = [one.member.name for one in package.manifest.artefacts if one.member.name not in used]
    found = [f"graded {graded} of {studies} studies"] if graded < studies else []
    for ending in report.get("supervision", []):
        found.append(f"lost its kernel after {ending['after_s']} s ({ending.get('signal') or ending.get('code')})")
    if report["fallbacks"]["rows"]:
        found.append(f"left {report['fallbacks']['rows']} rows to the prior")
    if idle:
        found.append(f"did without {len(idle)} of {len(package.manifest.artefacts)} networks: {', '.join(idle[:3])}")
    try:
        table = pd.read_csv(folder / "submission.csv", dtype={"row_id": str})
        check(table, list(table["row_id"]))
        if len(table) != studies * len(ROWS):
            found.append(f"wrote {len(table)} rows for {studies} studies")
    except (SubmissionError, OSError, ValueError, KeyError) as error:
        found.append(f"wrote no submission that could be scored: {error}")
    return found


def remedy(report: dict[str, Any]) -> str:
    """How to mend a run with shortcomings: damaged weights are not made whole by another run."""
    problems = [one for one in report.get("problems", []) if isinstance(one, dict)]
    damaged = [one for one in problems if one.get("kind") == "member-unusable" and "upload" in str(one.get("detail"))]
    if damaged:
        return (
            f"the weights on Kaggle are damaged ({damaged[0]['detail']}): `make upload AGAIN=1 && {COMMAND} AGAIN=1` "
            "sends them again and runs on them"
        )
    return f"`{COMMAND} AGAIN=1` runs it once more"


def describe(report: dict[str, Any]) -> str:
    """What a run did, and its problems by kind."""
    took = f"{report['seconds']['total']:.0f} s on {report.get('device', 'an unknown device')}"
    return f"the run took {took} with {len(report.get('members_used') or [])} networks and {outcome(report)}"
