"""Submits the notebook version whose run was verified, once, and optionally waits for the score.

A day has few submissions, so Kaggle's own list of them decides what is still to be sent: each description names the
weights and the notebook.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from kernels.build_notebook import COMPETITION
from kernels.lumbar.networks.weights import MANIFEST_FILE, manifest_digest

from .client import ClientAnswer, KaggleError, Polling, StillWaiting, act, query_json
from .pushes import url_of
from .state import SentKernel, SentSubmission, ShipState

COMMAND = "make submit"
PENDING = "pending"
# Time within which Kaggle lists an accepted submission.
LISTED_WITHIN_S = 120.0
PAGE = f"https://www.kaggle.com/competitions/{COMPETITION}/submissions"
# Earlier descriptions did not name the notebook's digest.
DESCRIBED = re.compile(r"weights ([0-9a-f]{12}), notebook (?:([0-9a-f]{12}), )?version (\d+)")
Row = dict[str, Any]


class SubmissionRefused(KaggleError):
    """Kaggle takes this submission not from the client, or not at all."""

    exit_code = 4


def description(kernel: SentKernel, message: str) -> str:
    """What Kaggle lists: the message, and the digests by which the submission is recognised."""
    return described(message, kernel.manifest_sha256[:12], kernel.sha256[:12], str(kernel.version))


def described(message: str, weights: str, notebook: str, version: str) -> str:
    """A description of these parts."""
    digests = f"weights {weights}, notebook {notebook}, version {version}"
    return f"{message} ({digests})" if message else digests


def command(ref: str, version: int | str, message: str) -> list[str]:
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
    kernel, run = state.sent.kernel, state.sent.run
    if kernel is None or kernel.version is None or run is None or not run.seen:
        if not dry_run:
            raise KaggleError(f"{ship} has no verified run of a pushed notebook: `make push` first")
        text = described(message, "…", "…", "…")
        print("would run: kaggle " + shlex.join(command("<owner>/lumbar-inference", "<version pushed>", text)))
        return
    check_pushed(weights, kernel.manifest_sha256, kernel.version)
    before = None if again else submitted_before(state, kernel, polling, dry_run)
    text = before or description(kernel, message)
    if before is None:
        arguments = command(kernel.ref, kernel.version, text)
        print(("would run: " if dry_run else "") + "kaggle " + shlex.join(arguments), flush=True)
        if not dry_run:
            hand_in(state, kernel, text, polling)
    if wait and not dry_run:
        polling.wait("the submission", lambda: score_of(text), f"{COMMAND} WAIT=1")


def submitted_before(state: ShipState, kernel: SentKernel, polling: Polling, dry_run: bool) -> str | None:
    """The description of the submission of this notebook and these weights; None where there is none.

    A dry run looks only into the state.  Raises KaggleError where one may be under way, and is not listed.
    """
    known = state.sent.submission
    is_this = known is not None and (known.ref, known.version) == (kernel.ref, kernel.version)
    if known is not None and is_this and known.listed:
        print(f"version {kernel.version} was submitted already (`{COMMAND} AGAIN=1` submits it once more)", flush=True)
        return known.message
    if dry_run:
        return None
    rows = [row for row in submissions() if is_submission_of(row, kernel)]
    if not rows and known is not None and is_this:
        print(
            "a submission of this version was begun, and its answer did not arrive: Kaggle's list decides", flush=True
        )
        wait_until_listed(kernel, known.message, 0, polling)
        rows = rows_of(known.message)
    if not rows:
        return None
    row, text = rows[0], str(rows[0]["description"])
    score = f", public score {row['publicScore']}" if row.get("publicScore") else ""
    what = f"{row.get('date')}, {_status(row)}{score}"
    print(f"Kaggle lists a submission of this notebook and weights ({what}): not submitted again", flush=True)
    print(f"(`{COMMAND} AGAIN=1` submits it once more)", flush=True)
    state.put(submission=SentSubmission(ref=kernel.ref, version=kernel.version or 0, message=text))
    return text


def hand_in(state: ShipState, kernel: SentKernel, text: str, polling: Polling) -> None:
    """Submit, and wait until Kaggle lists it.  Raises KaggleError."""
    earlier = len(rows_of(text))
    sent = SentSubmission(ref=kernel.ref, version=kernel.version or 0, message=text, listed=False)
    state.put(submission=sent)
    answer = act(*command(kernel.ref, sent.version, text))
    if answer.code == 0:
        print(answer.text, flush=True)
    elif answer.may_have_acted:
        print(f"Kaggle's answer was lost ({answer.words[0]}): its list decides", flush=True)
    else:
        state.put(submission=None)
        raise refusal(answer, kernel)
    # The client's output is no proof; Kaggle's list is.
    wait_until_listed(kernel, text, earlier, polling)
    state.put(submission=sent.model_copy(update={"listed": True}))


def wait_until_listed(kernel: SentKernel, text: str, earlier: int, polling: Polling) -> None:
    """Wait until Kaggle lists more than `earlier` submissions with this description.  Raises KaggleError."""
    waiting = Polling(polling.interval_s, LISTED_WITHIN_S)
    try:
        waiting.wait("the submission", lambda: listed(text, earlier), COMMAND)
    except StillWaiting as error:
        raise KaggleError(
            f"Kaggle does not list the submission of {kernel.ref} version {kernel.version}, so it is not known whether "
            f"it arrived: look at {PAGE}, or `{COMMAND}` looks again; "
            f"if it is not there, `{COMMAND} AGAIN=1` submits it"
        ) from error


def refusal(answer: ClientAnswer, kernel: SentKernel) -> KaggleError:
    """Why Kaggle did not take a submission, with the way that remains."""
    error, sentence = answer.error(), answer.words[0]
    if answer.status == 404:
        return KaggleError(
            f"Kaggle does not find {kernel.ref} version {kernel.version}: `make push AGAIN=1`, then `{COMMAND}` "
            f"(Kaggle: {answer.message})",
            404,
        )
    known = answer.status in (401, 429) or answer.is_transient or "rule" in sentence.lower()
    if known or "No module named" in answer.text:
        return error
    return SubmissionRefused(
        f"Kaggle refuses the submission: {answer.message or f'exit code {answer.code}'}.  It may take late submissions "
        f"on its site only: open {url_of(kernel.ref)}, choose version {kernel.version}, and press "
        '"Submit to competition"',
        answer.status,
    )


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
        raise KaggleError(f"Kaggle no longer lists the submission: see {PAGE}")
    status = _status(rows[0])
    if status == PENDING:
        return status, None
    if status != "complete":
        raise KaggleError(f"Kaggle ended the submission with '{status}': see {PAGE}; `{COMMAND} AGAIN=1` makes another")
    private = f", private {rows[0]['privateScore']}" if rows[0].get("privateScore") else ""
    return f"public score {rows[0].get('publicScore')}{private}", True


def is_submission_of(row: Row, kernel: SentKernel) -> bool:
    """Whether a submission is of these weights and this notebook."""
    found = DESCRIBED.search(str(row.get("description") or ""))
    if not found or found[1] != kernel.manifest_sha256[:12]:
        return False
    return found[2] == kernel.sha256[:12] if found[2] else int(found[3]) == kernel.version


def submissions() -> list[Row]:
    """Kaggle's list of own submissions, newest first.  Raises KaggleError."""
    rows = query_json("competitions", "submissions", COMPETITION, "--format", "json", "--page-size", "200")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def rows_of(text: str) -> list[Row]:
    """The submissions with this description, newest first.  Raises KaggleError."""
    return [row for row in submissions() if row.get("description") == text]


def _status(row: Row) -> str:
    return str(row.get("status", "")).split(".")[-1].lower()
