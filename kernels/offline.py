"""What a simulated session takes away: the network and this repository.  Copied as sitecustomize.py by simulate.py.

Runs at the start of the notebook's process and of each Python that it starts.  An audit hook cannot be taken off again.
"""

from __future__ import annotations

import sys

LOOPBACK = ("127.", "::1", "localhost")


def refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    """Raise OSError at the first step towards another machine; local sockets stay."""
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


class RefuseRepository:
    """Finds no module, and refuses those that only a checkout has."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raise ModuleNotFoundError for this repository's packages."""
        if name in ("kernels", "training"):
            raise ModuleNotFoundError(f"the notebook must not import '{name}': Kaggle has no repository")


if __name__ == "sitecustomize":
    sys.addaudithook(refuse_network)
    sys.meta_path.insert(0, RefuseRepository())
