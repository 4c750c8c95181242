"""A process that has imported everything and forks itself for each step: a step costs milliseconds to begin, not
seconds.  It ends, and all that it forked with it, when the run that started it does.

    python -m training.workflow.warm_process SOCKET
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress

# Longer than any list of arguments; and how long a step may take to save its state.
REQUEST_BYTES = 1 << 16
GRACE_S = 30.0


def serve(place: str) -> None:
    """Fork for every request, until standard input ends: a run that is told to stop ends it, and so does its death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(256)
    import training.workflow.run_step  # noqa: F401  after listening, so that the first steps may already ask

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
    """The forked process: one step, with the asker's outputs; never returns."""
    code = 1
    try:
        request, outputs, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 2)
        for ours, theirs in zip((1, 2), outputs, strict=True):
            os.dup2(theirs, ours)
            os.close(theirs)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        threading.Thread(target=_follow, args=(connection,), daemon=True).start()
        from training.workflow.step import do

        code = do(json.loads(request))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  as any process, with its traceback; what called us must go no further
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(OSError):  # nobody may be there any more
            connection.send(bytes([code]))
        os._exit(code)


def _follow(connection: socket.socket) -> None:
    """Stop when the asker says so, or is gone; at once if that takes too long."""
    with suppress(OSError):
        connection.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    serve(sys.argv[1])
