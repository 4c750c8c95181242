"""The submission: names the notebook's version whose run was seen to end well, and waits for the score if asked to."""

from __future__ import annotations

import shlex
from pathlib import Path

from kernels.build_notebook import COMPETITION

from .client import KaggleError, ask_json, call
from .patience import Patience
from .state import ShipState

GO_ON = "make submit"
PENDING = "pending"
# A submission that Kaggle took is listed within so many seconds.
LISTED_WITHIN_S = 120.0


def command(ref: str, version: int, message: str) -> list[str]:
    """The client's arguments; -k and -v go together, and without -f old clients fail late."""
    return ["competitions", "submit", COMPETITION, "-k", ref, "-v", str(version), "-f", "submission.csv", "-m", message]


def submit(
    ship: Path, patience: Patience, dry_run: bool = False, again: bool = False, message: str = "", wait: bool = False
) -> None:
    """Submit the version that was pushed last and whose run was checked.  Raises KaggleError."""
    state = ShipState(ship)
    kernel, run, before = state.get("kernel"), state.get("run"), state.get("submission")
    if not run.get("seen"):
        if dry_run:
            print("would run: kaggle " + shlex.join(command("<owner>/lumbar-inference", 1, message or "…")))
            return
        raise KaggleError(f"no run of a pushed notebook was seen to end well in {ship}: `make push` first")
    ref, version = kernel["ref"], kernel["version"]
    text = message or f"weights {kernel['manifest_sha256'][:12]}, notebook version {version}"
    arguments = command(ref, version, text)
    print(("would run: " if dry_run else "") + "kaggle " + shlex.join(arguments))
    if dry_run:
        return
    if before.get("version") == version and before.get("ref") == ref and not again:
        print(f"version {version} was submitted already (`{GO_ON} AGAIN=1` submits it once more)")
    else:
        answer = call(*arguments)
        if answer.status == 404:
            raise KaggleError(f"Kaggle does not find {ref} version {version}: `make push AGAIN=1`, then `{GO_ON}`", 404)
        if answer.code != 0:
            raise answer.error()
        state.put("submission", ref=ref, version=version, message=text)
        print(answer.text)
    # What the client printed is no proof; Kaggle's list is.
    Patience(patience.poll_s, LISTED_WITHIN_S).wait("the submission", lambda: listed(text), GO_ON)
    if wait:
        patience.wait("the submission", lambda: score_of(text), f"{GO_ON} WAIT=1")


def listed(text: str) -> tuple[str, bool]:
    """Whether Kaggle lists a submission with this description."""
    found = any(row.get("description") == text for row in _submissions())
    return ("listed" if found else "not listed yet"), found


def score_of(text: str) -> tuple[str, bool]:
    """What Kaggle says of the newest submission with this description, and whether that is final."""
    row = next((row for row in _submissions() if row.get("description") == text), None)
    if row is None:
        raise KaggleError("Kaggle no longer lists the submission: look at its page")
    status = str(row.get("status", "")).split(".")[-1].lower()
    if status == PENDING:
        return status, False
    if status != "complete":
        raise KaggleError(f"Kaggle ended the submission with '{status}': its page says why")
    return f"public score {row.get('publicScore')}, private {row.get('privateScore')}", True


def _submissions() -> list[dict[str, str]]:
    rows = ask_json("competitions", "submissions", COMPETITION, "--format", "json")
    return rows if isinstance(rows, list) else []
