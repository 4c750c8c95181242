"""Runs the `kaggle` client in a subprocess, parses its output, retries, and polls.

Its exit code is no proof of success (it is 0 for a refused dataset, an unknown source and a failed run), so every
caller queries Kaggle's state afterwards.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from kernels.text import duration_text

# Pauses between retries of a query whose connection or server failed, in seconds.
RETRY_S = (1.0, 4.0, 15.0)
CALL_TIMEOUT_S = 120.0
# A wait without news says so after this time.
HEARTBEAT_S = 300.0
NEXT_PAGE = "Next Page Token = "
# Phrases of Kaggle's server that identify an error whose status the client does not print.
PHRASES = {
    401: r"unauthenticated|authentication required",
    404: r"not found|could not find|does not exist",
    403: r"denied|cannot access|(do not|don't) have access|forbidden|must accept|not allowed",
    409: r"already in use|already exists",
    429: r"too many requests|rate limit",
    503: r"unavailable|internal (server )?error|try again later",
}
# Ends of a connection that was made; urllib3 calls some of them retries that were used up.
CUT = r"Connection (aborted|broken|reset)|IncompleteRead|Read timed out|Remote end closed"
BROKEN_CONNECTION = rf"Max retries exceeded|{CUT}"
NOT_CONNECTED = r"NewConnectionError|NameResolutionError|ConnectTimeoutError|SSLError|Tunnel connection failed"
# An answer that the client could not read, or an error of its own while it did.
UNREADABLE = r"Expecting value|JSONDecodeError|Traceback \(most recent|kaggle --debug"


Result = TypeVar("Result")


class KaggleError(Exception):
    """What failed and what to do next, in one sentence or two; `status`: HTTP status, where there was one."""

    exit_code = 1

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class TimedOut(KaggleError):
    """The client did not end in time: Kaggle may have acted, or not."""


class StillWaiting(KaggleError):
    """What was waited for did not come in time."""


@dataclass(frozen=True)
class ClientAnswer:
    """Exit code and output of one call of the client."""

    command: str
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Everything printed, without progress bars."""
        lines = _without_progress(f"{self.out}\n{self.err}").splitlines()
        return "\n".join(line for line in lines if line.strip())

    @property
    def words(self) -> tuple[str, str]:
        """The server's message, and the client's hint after an empty line (clients from 2.2.5; may be empty).

        The hint is the same for all errors of a status, so its remedies may not apply.
        """
        printed = _without_progress(self.err).strip() or _without_progress(self.out).strip()
        if not printed or "Traceback (most recent call last)" in printed:
            return _last(printed), ""
        sentence, *hints = re.split(r"\n\s*\n", printed)
        return _last(sentence), " ".join(" ".join(hints).split())

    @property
    def message(self) -> str:
        """The server's message, then the client's hint."""
        return "; the client adds: ".join(filter(None, self.words))

    @property
    def status(self) -> int | None:
        """HTTP status of the error, printed by the client or inferred from the server's message."""
        return (_status(self.words[0]) or _status(self.text)) if self.code else None

    @property
    def connection_failed(self) -> bool:
        """Whether Kaggle could not be reached, or the connection ended midway."""
        return self.code != 0 and re.search(BROKEN_CONNECTION, self.text) is not None

    @property
    def is_transient(self) -> bool:
        """Whether a retry may succeed."""
        return self.connection_failed or self.status in (429, 500, 502, 503, 504)

    @property
    def may_have_acted(self) -> bool:
        """Whether Kaggle may have done what was asked although the call failed: its answer was lost."""
        if self.code == 0 or re.search(rf"{NOT_CONNECTED}|No module named", self.text):
            return False
        is_lost = self.connection_failed or re.search(UNREADABLE, self.text) is not None
        return is_lost or self.code < 0 or (self.status or 0) >= 500

    def error(self) -> KaggleError:
        """The call's failure with its remedy where that is known, else with the client's message."""
        if self.status == 401:
            return KaggleError(
                "Kaggle refuses the credentials: create a token at https://www.kaggle.com/settings and save it as "
                "~/.kaggle/access_token or kaggle.json, or set KAGGLE_API_TOKEN; `make doctor` checks it",
                401,
            )
        if "No module named" in self.text:
            return KaggleError(f"the kaggle client does not start ({self.words[0]}): run `make install`")
        if "Max retries exceeded" in self.text and not re.search(CUT, self.text):
            return KaggleError(f"Kaggle cannot be reached: `{self.command}` could not connect; is there a network?")
        if self.status == 403 and "rule" in self.words[0].lower():
            return KaggleError("Kaggle refuses: accept the competition's rules on its page first", 403)
        if self.is_transient:
            return KaggleError(f"Kaggle is busy ({self.message}): run the same command in a minute", self.status)
        return KaggleError(f"`{self.command}` failed: {self.message or f'exit code {self.code}'}", self.status)


def call(*arguments: str, timeout_s: float | None = CALL_TIMEOUT_S, live: bool = False) -> ClientAnswer:
    """Run `kaggle <arguments>`; `live` passes its progress bars on.  Raises TimedOut."""
    command = "kaggle " + shlex.join(arguments)
    program = [sys.executable, "-m", "kaggle", "-W", *arguments]
    with _passed_on(live) as (stderr, kept):
        try:
            done = subprocess.run(program, stdout=subprocess.PIPE, stderr=stderr, timeout=timeout_s, text=True)
        except subprocess.TimeoutExpired as error:
            raise TimedOut(f"`{command}` did not end within {timeout_s:.0f} s: run it again") from error
    return ClientAnswer(command, done.returncode, done.stdout, done.stderr or b"".join(kept).decode(errors="replace"))


@contextmanager
def _passed_on(live: bool) -> Iterator[tuple[int, list[bytes]]]:
    """Where the client's stderr goes, and its bytes: if `live` a pipe that is shown at once."""
    kept: list[bytes] = []
    if not live:
        yield subprocess.PIPE, kept
        return
    source, target = os.pipe()

    def show() -> None:
        while chunk := os.read(source, 1 << 16):
            kept.append(chunk)
            sys.stderr.write(chunk.decode(errors="replace"))
            sys.stderr.flush()

    shown = threading.Thread(target=show, daemon=True)
    shown.start()
    try:
        yield target, kept
    finally:
        os.close(target)
        shown.join()
        os.close(source)


def act(*arguments: str, timeout_s: float | None = CALL_TIMEOUT_S, live: bool = False) -> ClientAnswer:
    """A call that changes something on Kaggle; a timeout is an answer that was lost."""
    try:
        return call(*arguments, timeout_s=timeout_s, live=live)
    except TimedOut as error:
        return ClientAnswer("kaggle " + shlex.join(arguments), 1, "", f"Read timed out: {error}")


def query(
    *arguments: str, timeout_s: float = CALL_TIMEOUT_S, sleep: Callable[[float], None] = time.sleep
) -> ClientAnswer:
    """A query, retried after transient errors.  Raises KaggleError where it failed."""
    for pause_s in (*RETRY_S, None):
        answer = call(*arguments, timeout_s=timeout_s)
        if pause_s is None or not answer.is_transient:
            break
        print(f"Kaggle is busy or out of reach ({answer.words[0]}): asked again in {pause_s:.0f} s", flush=True)
        sleep(pause_s)
    if answer.code != 0:
        raise answer.error()
    return answer


def query_json(*arguments: str) -> Any:
    """A query whose output is JSON.  Raises KaggleError."""
    return json_in(query(*arguments))


def json_in(answer: ClientAnswer) -> Any:
    """The JSON in a query's output, after any other lines; an empty list where there is none.  Raises KaggleError."""
    start = re.search(r"^[\[{]", answer.out, re.MULTILINE)
    try:
        return json.loads(answer.out[start.start() :]) if start else []
    except ValueError as error:
        raise KaggleError(f"`{answer.command}` answered no JSON: {_last(answer.text)}") from error


@dataclass(frozen=True)
class Polling:
    """Interval and timeout of waiting for Kaggle, in seconds."""

    interval_s: float = 10.0
    timeout_s: float = 1800.0

    def wait(self, what: str, state: Callable[[], tuple[str, Result | None]], resume: str) -> Result:
        """Poll `state` until it has a result; prints its text whenever that changes, and every few minutes.

        Raises StillWaiting after the timeout, with the command that resumes the wait.
        """
        started, last, heard_s = time.monotonic(), "", 0.0
        while True:
            now, result = state()
            elapsed_s = time.monotonic() - started
            if now != last:
                print(f"{what}: {now} ({duration_text(elapsed_s)})", flush=True)
                last, heard_s = now, elapsed_s
            elif elapsed_s - heard_s >= HEARTBEAT_S:
                print(f"{what}: still {now} ({duration_text(elapsed_s)})", flush=True)
                heard_s = elapsed_s
            if result is not None:
                return result
            if elapsed_s + self.interval_s > self.timeout_s:
                raise StillWaiting(
                    f"{what} is still '{now}' after {duration_text(elapsed_s)}: `{resume}` continues waiting"
                )
            time.sleep(self.interval_s)


def user_in(answer: ClientAnswer) -> str | None:
    """The user name in the output of `kaggle config view`; None where it has none."""
    found = re.search(r"^- username: (\S+)$", answer.text, re.MULTILINE)
    return found.group(1) if answer.code == 0 and found and found.group(1) != "None" else None


def _status(message: str) -> int | None:
    found = re.search(r"\b([45]\d\d) (?:Client|Server) Error", message)
    if found:
        return int(found.group(1))
    return next((status for status, known in PHRASES.items() if re.search(known, message, re.IGNORECASE)), None)


def _without_progress(printed: str) -> str:
    lines = printed.replace("\r", "\n").splitlines()
    return "\n".join(line for line in lines if not re.search(r"\d+%\|.*\|", line))


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
