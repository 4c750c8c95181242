"""Submits the notebook version whose run was verified, and optionally waits for the score."""

from __future__ import annotations

import shlex
from pathlib import Path

from kernels.build_notebook import COMPETITION
from kernels.lumbar.networks.weights import MANIFEST_FILE, manifest_digest

from .client import KaggleError, Polling, call, query_json
from .state import ShipState

COMMAND = "make submit"
PENDING = "pending"
# Time within which Kaggle lists an accepted submission.
LISTED_WITHIN_S = 120.0


def command(ref: str, version: int, message: str) -> list[str]:
    """The client's arguments; -k and -v go together, and without -f old clients fail late."""
    return ["competitions", "submit", COMPETITION, "-k", ref, "-v", str(version), "-f", "submission.csv", "-m", message]


def submit(
    weights: Path,
    ship: Path,
    polling: Polling,
    dry_run: bool = False,
    again: bool = False,
    message: str = "",
    wait: bool = False,
) -> None:
    """Submit the last pushed version, whose run was verified.  Raises KaggleError.

    `weights`: a package in this folder must be the one that the version was pushed for.
    """
    state = ShipState(ship)
    kernel, run, before = state.get("kernel"), state.get("run"), state.get("submission")
    if not run.get("seen"):
        if dry_run:
            print("would run: kaggle " + shlex.join(command("<owner>/lumbar-inference", 1, message or "…")))
            return
        raise KaggleError(f"{ship} has no verified run of a pushed notebook: `make push` first")
    ref, version = kernel["ref"], kernel["version"]
    check_pushed(weights, kernel["manifest_sha256"], version)
    if before.get("version") == version and before.get("ref") == ref and not again:
        print(f"version {version} was submitted already (`{COMMAND} AGAIN=1` submits it once more)")
        if dry_run:
            return
        text, earlier = before["message"], 0
    else:
        text = message or f"weights {kernel['manifest_sha256'][:12]}, notebook version {version}"
        arguments = command(ref, version, text)
        print(("would run: " if dry_run else "") + "kaggle " + shlex.join(arguments))
        if dry_run:
            return
        earlier = len(rows_of(text))
        answer = call(*arguments)
        if answer.status == 404:
            raise KaggleError(
                f"Kaggle does not find {ref} version {version}: `make push AGAIN=1`, then `{COMMAND}`", 404
            )
        if answer.code != 0:
            raise answer.error()
        state.put("submission", ref=ref, version=version, message=text)
        print(answer.text)
    # The client's output is no proof; Kaggle's list is.
    Polling(polling.interval_s, LISTED_WITHIN_S).wait("the submission", lambda: listed(text, earlier), COMMAND)
    if wait:
        polling.wait("the submission", lambda: score_of(text), f"{COMMAND} WAIT=1")


def check_pushed(weights: Path, digest: str, version: int) -> None:
    """Raises KaggleError where the folder holds other weights than the version was pushed for."""
    manifest = weights / MANIFEST_FILE
    if manifest.is_file() and manifest_digest(manifest) != digest:
        raise KaggleError(
            f"version {version} was pushed for the weights {digest[:12]}, and {weights} holds "
            f"{manifest_digest(manifest)[:12]}: `make upload && make push` first"
        )


def listed(text: str, earlier: int) -> tuple[str, bool | None]:
    """Whether Kaggle lists more than `earlier` submissions with this description, as a state to poll."""
    return ("listed", True) if len(rows_of(text)) > earlier else ("not listed yet", None)


def score_of(text: str) -> tuple[str, bool | None]:
    """Status or score of the newest submission with this description, as a state to poll."""
    rows = rows_of(text)
    if not rows:
        raise KaggleError("Kaggle no longer lists the submission: see its page")
    row = rows[0]
    status = str(row.get("status", "")).split(".")[-1].lower()
    if status == PENDING:
        return status, None
    if status != "complete":
        raise KaggleError(f"Kaggle ended the submission with '{status}': see its page")
    private = f", private {row['privateScore']}" if row.get("privateScore") else ""
    return f"public score {row.get('publicScore')}{private}", True


def rows_of(text: str) -> list[dict[str, str]]:
    """Kaggle's list of submissions with this description, newest first."""
    rows = query_json("competitions", "submissions", COMPETITION, "--format", "json", "--page-size", "200")
    return [row for row in rows if row.get("description") == text] if isinstance(rows, list) else []
