"""Runs the stages of `make demo` one after the other: a heading and the time of each, and the sum.

    python -m training.stages --stage TITLE COMMAND... [--then COMMAND...] [--stage TITLE COMMAND...]

The exit code is that of the first command that fails; none begins after it.  Ctrl-C reaches the running command itself,
SIGTERM is passed on to it; either ends the stages with 128 + its number where the command itself ended well.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from types import FrameType

from kernels.text import duration_text

POLL_S = 0.05


def split(words: Sequence[str], mark: str) -> list[list[str]]:
    """The words between marks."""
    return [list(part) for is_mark, part in groupby(words, mark.__eq__) if not is_mark]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    stages = split(sys.argv[1:] if argv is None else argv, "--stage")
    process: subprocess.Popen[bytes] | None = None
    received = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        if number == signal.SIGTERM and process is not None:
            process.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    began = time.monotonic()
    for place, (title, *words) in enumerate(stages, 1):
        started, name = time.monotonic(), f"{place}/{len(stages)}"
        _print_now(f"\n{name} {title}")
        for command in split(words, "--then"):
            if received:
                return 128 + received
            process = subprocess.Popen(command)
            if received == signal.SIGTERM:  # it came while the command was begun
                process.terminate()
            # Not wait(): a signal just before it blocks would be handled only after the command ended by itself.
            while process.poll() is None:
                time.sleep(POLL_S)
            code = process.returncode or (128 + received if received else 0)
            if code:
                code = code if code > 0 else 128 - code  # as a shell gives it
                sys.stderr.write(
                    f"{name} ended after {duration_text(time.monotonic() - started)} with exit code {code}\n"
                )
                return code
        _print_now(f"{name} took {duration_text(time.monotonic() - started)}")
    _print_now(f"all {len(stages)} stages took {duration_text(time.monotonic() - began)}")
    return 0


def _print_now(text: str) -> None:
    """Print at once, before what the next command prints."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
