"""One step of a grid, as Snakemake calls it.

    python -m training.workflow.step RUNS/.workflow/grid.json NAME --threads N

Where a warm process waits (warm_process.py) it does the step, else this process does, after seconds of
imports; so nothing heavy is imported up here.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

WARM, RUN = "LUMBAR_WARM", "LUMBAR_RUN"
STOP = b"T"
# What a shell says of a process that was killed.
KILLED = 137
# What training.train_all says, too, where more is to come.
STOPPED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: 0 = done, 1 = failed, with the reason as the last line."""
    given = list(sys.argv[1:] if argv is None else argv)
    place = os.environ.get(WARM)
    if place:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(place)
            except OSError:
                return do(given) if _has_run() else _gone()
            return _have_done(connection, given)
    return do(given)


def _have_done(connection: socket.socket, given: list[str]) -> int:
    """Let the warm process do it with our outputs; a signal to us reaches the one who works."""
    is_sent = is_stopping = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        is_stopping = True
        if is_sent:  # before the job it would be taken for one
            _say_stop(connection)

    signal.signal(signal.SIGTERM, pass_on)
    # Of a terminal's Ctrl-C the run that began all this tells the one who works.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        socket.send_fds(connection, [json.dumps(given).encode()], [sys.stdout.fileno(), sys.stderr.fileno()])
        is_sent = True
        if is_stopping:
            _say_stop(connection)
        answer = connection.recv(1)
    except ConnectionError:  # it was gone before it took the job, or went without reading all that we said
        answer = b""
    if answer:
        return answer[0]
    if not _has_run():
        return _gone()
    if is_stopping:
        sys.stderr.write("stopped before it could say so; the next run goes on at its last epoch\n")
        return STOPPED
    sys.stderr.write(
        "its process was killed, most often for want of memory: run fewer at a time with JOBS=; "
        "the next run goes on at its last epoch\n"
    )
    return KILLED


def _say_stop(connection: socket.socket) -> None:
    with suppress(OSError):  # it may have ended, and its answer may still be read
        connection.send(STOP)


def _has_run() -> bool:
    """Whether the run that began this is still there."""
    try:
        os.kill(int(os.environ.get(RUN, os.getpid())), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _gone() -> int:
    sys.stderr.write("the run that began this is gone; the next one goes on here\n")
    return STOPPED


def do(given: Sequence[str]) -> int:
    """Do the step in this process."""
    import logging
    from datetime import datetime
    from pathlib import Path

    from training.fitting.time_limit import OutOfTime
    from training.workflow.grid import read_grid
    from training.workflow.run_step import EXPECTED, do_step

    parser = argparse.ArgumentParser(prog="training.workflow.step", description=__doc__)
    parser.add_argument("grid", type=Path)
    parser.add_argument("name")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", force=True)
    sys.stderr.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S} {options.name} on {os.uname().nodename}\n")
    grid = read_grid(options.grid)
    try:
        do_step(grid, grid.steps[options.name], options.threads)
    except EXPECTED as error:
        sys.stderr.write(f"{error}\n" if str(error) else "")
        return 1
    except OutOfTime:
        sys.stderr.write("stopped between two epochs; the next run goes on there\n")
        return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
