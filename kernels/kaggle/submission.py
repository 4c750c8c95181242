"""The submission: names the notebook's version whose run was seen to end well, and waits for the score if asked to."""

from __future__ import annotations

import shlex
from pathlib import Path

from kernels.build_notebook import COMPETITION
from kernels.lumbar.networks.weights import MANIFEST_FILE, manifest_digest

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
    weights: Path,
    ship: Path,
    patience: Patience,
    dry_run: bool = False,
    again: bool = False,
    message: str = "",
    wait: bool = False,
) -> None:
    """Submit the version that was pushed last and whose run was checked.  Raises KaggleError.

    `weights`: where a package lies there, it must be the one that was pushed.
    """
    state = ShipState(ship)
    kernel, run, before = state.get("kernel"), state.get("run"), state.get("submission")
    if not run.get("seen"):
        if dry_run:
            print("would run: kaggle " + shlex.join(command("<owner>/lumbar-inference", 1, message or "…")))
            return
        raise KaggleError(f"no run of a pushed notebook was seen to end well in {ship}: `make push` first")
    ref, version = kernel["ref"], kernel["version"]
    check_pushed(weights, kernel["manifest_sha256"], version)
    if before.get("version") == version and before.get("ref") == ref and not again:
        print(f"version {version} was submitted already (`{GO_ON} AGAIN=1` submits it once more)")
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
            raise KaggleError(f"Kaggle does not find {ref} version {version}: `make push AGAIN=1`, then `{GO_ON}`", 404)
        if answer.code != 0:
            raise answer.error()
        state.put("submission", ref=ref, version=version, message=text)
        print(answer.text)
    # What the client printed is no proof; Kaggle's list is.
    Patience(patience.poll_s, LISTED_WITHIN_S).wait("the submission", lambda: listed(text, earlier), GO_ON)
    if wait:
        patience.wait("the submission", lambda: score_of(text), f"{GO_ON} WAIT=1")


def check_pushed(weights: Path, digest: str, version: int) -> None:
    """Raises KaggleError where other weights lie here than the version was pushed for."""
    manifest = weights / MANIFEST_FILE
    if manifest.is_file() and manifest_digest(manifest) != digest:
        raise KaggleError(
            f"version {version} was pushed for the weights {digest[:12]}, and {weights} holds "
            f"{manifest_digest(manifest)[:12]}: `make upload && make push` first"
        )


def listed(text: str, earlier: int) -> tuple[str, bool]:
    """Whether Kaggle lists more submissions with this description than there were."""
    found = len(rows_of(text)) > earlier
    return ("listed" if found else "not listed yet"), found


def score_of(text: str) -> tuple[str, bool]:
    """What Kaggle says of the newest submission with this description, and whether that is final."""
    rows = rows_of(text)
    if not rows:
        raise KaggleError("Kaggle no longer lists the submission: look at its page")
    row = rows[0]
    status = str(row.get("status", "")).split(".")[-1].lower()
    if status == PENDING:
        return status, False
    if status != "complete":
        raise KaggleError(f"Kaggle ended the submission with '{status}': its page says why")
    private = f", private {row['privateScore']}" if row.get("privateScore") else ""
    return f"public score {row.get('publicScore')}{private}", True


def rows_of(text: str) -> list[dict[str, str]]:
    """What Kaggle lists of submissions with this description, newest first."""
    rows = ask_json("competitions", "submissions", COMPETITION, "--format", "json", "--page-size", "200")
    return [row for row in rows if row.get("description") == text] if isinstance(rows, list) else []
