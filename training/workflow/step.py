"""One step of a grid, as Snakemake calls it; and the warm process, which has imported everything and forks for a step.

    python -m training.workflow.step RUNS/.workflow/grid.json NAME --threads N
    python -m training.workflow.step --serve SOCKET

Where LUMBAR_WARM names the socket of a warm process, a fork of it does the step in milliseconds; else this process
does, after seconds of imports: so nothing heavy is imported up here.  The step sends its arguments and its two outputs;
then STOP if it gets a signal.  The fork answers with one byte, the exit code.  The warm process ends, and its forks
with it, when its standard input does: when the run that started it ends, however it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

WARM, RUN = "LUMBAR_WARM", "LUMBAR_RUN"
STOP = b"T"
# The exit code that a shell gives a process that was killed.
KILLED = 137
# The exit code of training.train_all, too, where the same command resumes.
STOPPED = 3
# Longer than any list of arguments.
REQUEST_BYTES = 1 << 16
# How long a step may take to save its state.
GRACE_S = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: 0 = done, 1 = failed, with the reason as the last line."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["--serve"]:
        serve(given[1])
        return 0
    if not (place := os.environ.get(WARM)):
        return do(given)
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(place)
        except OSError:
            return do(given) if _has_run() else _orphaned()
        return _ask(connection, given)


def _ask(connection: socket.socket, given: list[str]) -> int:
    """Let a fork of the warm process do the step with the outputs of this process, and pass SIGTERM on to it."""
    is_sent = is_stopping = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        is_stopping = True
        if is_sent:  # before the arguments it would be taken for them
            _send_stop(connection)

    signal.signal(signal.SIGTERM, pass_on)
    # After a terminal's Ctrl-C the run itself ends the warm process and its forks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        socket.send_fds(connection, [json.dumps(given).encode()], [sys.stdout.fileno(), sys.stderr.fileno()])
        is_sent = True
        if is_stopping:
            _send_stop(connection)
        answer = connection.recv(1)
    except ConnectionError:  # it ended before it took the job, or before it read all of it
        answer = b""
    if answer:
        return answer[0]
    if not _has_run():
        return _orphaned()
    if is_stopping:
        sys.stderr.write("stopped before it could confirm it; the next run resumes at its last epoch\n")
        return STOPPED
    sys.stderr.write(
        "its process was killed, most often for lack of memory: run fewer at a time with JOBS=; "
        "the next run resumes at its last epoch\n"
    )
    return KILLED


def _send_stop(connection: socket.socket) -> None:
    with suppress(OSError):  # the fork may have ended, and its answer may still be read
        connection.send(STOP)


def _has_run() -> bool:
    """Whether the run that began this is alive."""
    try:
        os.kill(int(os.environ.get(RUN, os.getpid())), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _orphaned() -> int:
    sys.stderr.write("the run that began this is gone; the next one resumes here\n")
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
        sys.stderr.write("stopped between two epochs; the next run resumes there\n")
        return STOPPED
    return 0


def serve(place: str) -> None:
    """Fork for every request until standard input ends; then send SIGTERM to all forks that are left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(256)
    import training.workflow.run_step  # noqa: F401  after listening, so that the first steps may already connect

    children: set[int] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select(timeout=1.0)]
            children -= {child for child in children if os.waitpid(child, os.WNOHANG)[0]}
            if sys.stdin in ready:
                break
            if listener in ready:
                connection, _ = listener.accept()
                if not (child := os.fork()):
                    selector.close()
                    listener.close()
                    _work(connection)
                children.add(child)
                connection.close()
    for child in children:
        os.kill(child, signal.SIGTERM)


def _work(connection: socket.socket) -> None:
    """The forked process: one step, with the outputs that it is sent; never returns."""
    code = 1
    try:
        request, outputs, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 2)
        for own, received in zip((1, 2), outputs, strict=True):
            os.dup2(received, own)
            os.close(received)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        threading.Thread(target=_follow, args=(connection,), daemon=True).start()
        code = do(json.loads(request))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  as any process, with its traceback; the server's code must not continue here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(OSError):  # the other end may be closed
            connection.send(bytes([code]))
        os._exit(code)


def _follow(connection: socket.socket) -> None:
    """Stop on STOP, or when the connection is closed; at once where that takes longer than GRACE_S."""
    with suppress(OSError):
        connection.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
