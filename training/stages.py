"""Runs the stages of `make demo` one after the other: a heading and the time of each, and the sum.

    python -m training.stages --stage TITLE COMMAND... [--then COMMAND...] [--stage TITLE COMMAND...]

The exit code is that of the first command that fails, which ends it.  Ctrl-C reaches the running command itself;
SIGTERM is passed on to it.  After either no other command begins: 128 + the signal's number.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType


def split(words: Sequence[str], mark: str) -> list[list[str]]:
    """The words before, between and after marks."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == mark:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


class Runner:
    """Runs one command at a time in the foreground, and remembers a signal to stop."""

    def __init__(self) -> None:
        self.received = 0
        self._process: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if number == signal.SIGTERM and self._process is not None:
            self._process.terminate()

    def run(self, command: Sequence[str]) -> int:
        """The exit code of a command as a shell gives it: 128 + number where a signal ended it, or came meanwhile."""
        if not self.received:
            self._process = subprocess.Popen(command)
            code = self._process.wait()
            if code:
                return code if code > 0 else 128 - code
        return 128 + self.received if self.received else 0


def duration(seconds: float) -> str:
    """ "42 s", "3 min 05 s"."""
    minutes, rest_s = divmod(round(seconds), 60)
    return f"{minutes} min {rest_s:02d} s" if minutes else f"{rest_s} s"


def _say(text: str) -> None:
    """Print at once, before what the next command prints."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    before, *stages = split(sys.argv[1:] if argv is None else argv, "--stage")
    if before or not stages or not all(all(split(stage[1:], "--then")) for stage in stages):
        sys.stderr.write("usage: training.stages --stage TITLE COMMAND... [--then COMMAND...] [--stage ...]\n")
        return 2
    runner, began = Runner(), time.monotonic()
    for number, (title, *words) in enumerate(stages, 1):
        place, started = f"{number}/{len(stages)}", time.monotonic()
        _say(f"\n{place} {title}")
        for command in split(words, "--then"):
            if code := runner.run(command):
                spent = duration(time.monotonic() - started)
                sys.stderr.write(f"{place} ended after {spent} with exit code {code}\n")
                return code
        _say(f"{place} took {duration(time.monotonic() - started)}")
    _say(f"all {len(stages)} stages took {duration(time.monotonic() - began)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
