"""Passes on what a child process prints, as it prints it."""

from __future__ import annotations

import codecs
import subprocess
import sys
import threading
from typing import IO, TextIO

AT_ONCE = 1 << 16
# A grandchild that outlives the child may hold its pipes open.
PATIENCE_S = 5.0


class Relay:
    """Two threads that copy a child's stdout and stderr to ours, which in a notebook are no files."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        pairs = ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
        self._threads = [
            threading.Thread(target=_copy, args=pair, daemon=True) for pair in pairs if pair[0] is not None
        ]

    def __enter__(self) -> Relay:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)


def _copy(source: IO[bytes], sink: TextIO) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    is_open = True
    with source:
        while chunk := source.read1(AT_ONCE):  # type: ignore[attr-defined]
            try:
                if is_open:
                    sink.write(decoder.decode(chunk))
                    sink.flush()
            except (OSError, ValueError):  # nobody listens any more: still to be read, or the child would wait for us
                is_open = False
