"""Blocks the network, this repository, and writing to the inputs in a simulated session.

Copied as sitecustomize.py by simulate/__main__.py.  Runs at the start of the notebook's process and of each Python that
it starts.  An audit hook cannot be removed.
"""

from __future__ import annotations

import errno
import os
import sys

LOOPBACK = ("127.", "::1", "localhost")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {f"os.{name}" for name in ("chmod", "mkdir", "remove", "rename", "rmdir", "truncate")}
INPUTS = os.environ.get("LUMBAR_INPUT_ROOT", "")


def refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    """Raise OSError for a connection to another machine; local sockets are allowed."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if isinstance(host, bytes):
        host = host.decode()
    if isinstance(host, str) and host and not host.startswith(LOOPBACK):
        raise OSError(f"no network in a competition's notebook: {host}")


def refuse_changed_inputs(event: str, arguments: tuple[object, ...]) -> None:
    """Raise OSError where a file below the inputs is opened for writing, moved or removed, also by root."""
    if event == "open":
        flags = arguments[2]
        paths = arguments[:1] if isinstance(flags, int) and flags & WRITING else ()
    elif event in ("os.link", "os.symlink"):
        paths = arguments[1:]  # what is linked to may be an input
    else:
        paths = arguments if event in CHANGES else ()
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike) and os.path.abspath(os.fsdecode(path)).startswith(INPUTS + "/"):
            raise OSError(errno.EROFS, "Read-only file system", os.fsdecode(path))


class RefuseRepository:
    """Import finder that refuses this repository's packages."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raise ModuleNotFoundError for this repository's packages."""
        if name in ("kernels", "training"):
            raise ModuleNotFoundError(f"the notebook must not import '{name}': Kaggle has no repository")


if __name__ == "sitecustomize":
    sys.addaudithook(refuse_network)
    if INPUTS:
        sys.addaudithook(refuse_changed_inputs)
    sys.meta_path.insert(0, RefuseRepository())
