"""Calls the real `kaggle` client, and reads what it answers.

The client is a program of its own here: it may exit, print and be killed as it likes.  Its exit code is no proof of
success (it is 0 for a refused dataset, an unknown source and a failed run), so every caller asks afterwards what
Kaggle has.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Waits between attempts to ask again where the line or the server failed, in seconds.
RETRY_S = (1.0, 4.0, 15.0)
CALL_TIMEOUT_S = 120.0
# Words of Kaggle's server by which an error is known whose status the client does not print.
SAID = {
    401: r"unauthenticated|authentication required",
    404: r"not found|could not find|does not exist",
    403: r"denied|cannot access|forbidden|must accept|not allowed",
    409: r"already in use|already exists",
    429: r"too many requests|rate limit",
    503: r"unavailable|internal (server )?error|try again later",
}
# What the client (2.2.5) says behind every error of Kaggle's own, whichever it is.
CLIENTS_HINT = "This is a problem on Kaggle's side"


class KaggleError(Exception):
    """What went wrong and what to do next, in one sentence or two; `status` is HTTP's, where there was one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ClientAnswer:
    """What one call of the client printed."""

    command: str
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Everything printed, without progress bars."""
        lines = f"{self.out}\n{self.err}".replace("\r", "\n").splitlines()
        return "\n".join(line for line in lines if line.strip() and not re.search(r"\d+%\|.*\|", line))

    @property
    def status(self) -> int | None:
        """HTTP's status of the error: the client names it, or else passes on the server's words alone."""
        if self.code == 0:
            return None
        found = re.search(r"\b([45]\d\d) (?:Client|Server) Error", self.text)
        if found:
            return int(found.group(1))
        return next((status for status, words in SAID.items() if re.search(words, self.text, re.IGNORECASE)), None)

    @property
    def is_transient(self) -> bool:
        """Whether the same question may be answered a little later."""
        broken_line = (
            re.search(r"Max retries exceeded|Connection (aborted|broken)|IncompleteRead", self.text) is not None
        )
        return self.code != 0 and (broken_line or self.status in (429, 500, 502, 503, 504))

    def error(self) -> KaggleError:
        """Why this call failed, for people: the remedy where it is known, else the client's own last line."""
        if self.status == 401:
            return KaggleError(
                "Kaggle does not know you: create a token at https://www.kaggle.com/settings and save it as "
                "~/.kaggle/access_token or kaggle.json, or set KAGGLE_API_TOKEN; `make doctor` checks it",
                401,
            )
        if "No module named" in self.text:
            return KaggleError(f"the kaggle client does not start ({_last(self.text)}): run `make install`")
        if "Max retries exceeded" in self.text:
            return KaggleError(f"Kaggle cannot be reached: `{self.command}` found no way to it; is there a network?")
        if self.status == 403 and "rule" in self.text.lower():
            return KaggleError("Kaggle refuses: accept the competition's rules on its page first", 403)
        if self.is_transient:
            return KaggleError(f"Kaggle is busy ({_last(self.text)}): run the same command in a minute", self.status)
        return KaggleError(f"`{self.command}` failed: {_last(self.text) or f'exit code {self.code}'}", self.status)


def call(*arguments: str, timeout_s: float | None = CALL_TIMEOUT_S, live: bool = False) -> ClientAnswer:
    """Run `kaggle <arguments>`; `live` passes its progress bars on.  Raises KaggleError where it never ended."""
    command = "kaggle " + shlex.join(arguments)
    program = [sys.executable, "-m", "kaggle", "-W", *arguments]
    try:
        done = subprocess.run(
            program, stdout=subprocess.PIPE, stderr=None if live else subprocess.PIPE, timeout=timeout_s, text=True
        )
    except subprocess.TimeoutExpired as error:
        raise KaggleError(f"`{command}` did not end within {timeout_s:.0f} s: run it again") from error
    return ClientAnswer(command, done.returncode, done.stdout, done.stderr or "")


def ask(
    *arguments: str, timeout_s: float = CALL_TIMEOUT_S, sleep: Callable[[float], None] = time.sleep
) -> ClientAnswer:
    """A question, which may be asked again where the line broke.  Raises KaggleError where it was not answered."""
    for pause_s in (*RETRY_S, None):
        answer = call(*arguments, timeout_s=timeout_s)
        if pause_s is None or not answer.is_transient:
            break
        sleep(pause_s)
    if answer.code != 0:
        raise answer.error()
    return answer


def ask_json(*arguments: str) -> Any:
    """A question whose answer is JSON.  Raises KaggleError."""
    answer = ask(*arguments)
    start = re.search(r"^[\[{]", answer.out, re.MULTILINE)
    try:
        return json.loads(answer.out[start.start() :]) if start else []
    except ValueError as error:
        raise KaggleError(f"`{answer.command}` answered no JSON: {_last(answer.text)}") from error


def user_in(answer: ClientAnswer) -> str | None:
    """The user's name in what `kaggle config view` answers; None where the client does not know it."""
    found = re.search(r"^- username: (\S+)$", answer.text, re.MULTILINE)
    return found.group(1) if answer.code == 0 and found and found.group(1) != "None" else None


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(CLIENTS_HINT)]
    return lines[-1] if lines else ""
