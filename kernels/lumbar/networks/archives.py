"""The archives of networks for several workers: each is read and hashed once, and freed when all have loaded it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from ..manifest import Artefact
from .weights import checked_bytes

# Most bytes that are kept for workers that come later; beyond, the oldest archive is dropped and read again.
MOST_HELD = 2**30
_Key = tuple[str, int, int, str]


class Archives:
    """The verified archives of one package.  An archive is kept only while another worker is about to load it."""

    def __init__(self, folder: Path, most_held: int = MOST_HELD) -> None:
        self._folder, self._most_held = folder, most_held
        self._lock = threading.Lock()
        self._awaited: Counter[_Key] = Counter()
        self._reading: dict[_Key, threading.Lock] = {}
        self._held: dict[_Key, bytes] = {}

    @property
    def held_bytes(self) -> int:
        """Size of all archives that are kept at the moment."""
        return sum(map(len, self._held.values()))

    @contextmanager
    def shared(self, artefacts: Sequence[Artefact]) -> Iterator[Callable[[Artefact], bytes]]:
        """For a worker that will load these artefacts, each once: what returns the archive of one.

        That raises WeightsError, as weights.checked_bytes does.
        """
        due = Counter(_key(artefact) for artefact in artefacts)
        with self._lock:
            self._awaited += due

        def take(artefact: Artefact) -> bytes:
            key = _key(artefact)
            with self._lock:
                reading = self._reading.setdefault(key, threading.Lock())
            with reading:  # a second worker waits for the first one's bytes
                data = self._held.get(key) or checked_bytes(self._folder, artefact)
                with self._lock:
                    self._held[key] = data
                    self._release(key, 1)
                    due[key] -= 1
                    while self.held_bytes > self._most_held:
                        del self._held[next(iter(self._held))]
            return data

        try:
            yield take
        finally:
            with self._lock:
                for key, count in due.items():  # those that could not be loaded
                    self._release(key, count)

    def _release(self, key: _Key, count: int) -> None:
        self._awaited[key] -= count
        if self._awaited[key] <= 0:
            for known in (self._awaited, self._held, self._reading):
                known.pop(key, None)


def _key(artefact: Artefact) -> _Key:
    weights = artefact.weights
    return weights.file, weights.offset, weights.bytes, weights.sha256


@cache
def archives_of(folder: Path) -> Archives:
    """The archives of a package, the same object for all workers of the process."""
    return Archives(folder)
