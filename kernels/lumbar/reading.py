"""Studies are read ahead of the models by threads of their own, a bounded window: memory stays flat in their number."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .budget import Budget
from .dicom import read_study
from .in_hand import InHand
from .options import PATIENCE_S
from .problems import Problem
from .study import Study, gaps

# Batches read ahead of the models: measured to keep these 98 % busy.
LOOK_AHEAD = 2
Series = Mapping[str, Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class Batch:
    """Studies that go through the networks together; `number`: where they stand in the order of work."""

    number: int
    studies: list[Study]


class ReadAhead:
    """An iterator over batches of studies, which several threads may share.

    One reading thread hands them over in order; of several, each as it is ready.  A read that never comes back holds
    up neither the others nor, as the threads are daemons, the end of the process.
    """

    def __init__(
        self,
        images: Path,
        series: Series,
        batches: Sequence[Sequence[str]],
        budget: Budget,
        in_hand: InHand | None = None,
        threads: int = 1,
        ahead: int = LOOK_AHEAD,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._images, self._series, self._budget, self._patience_s = images, series, budget, patience_s
        self._batches = batches
        self._numbers = iter(range(len(batches)))
        self._owed = set(range(len(batches)))
        self._lock = threading.Lock()
        self._room = threading.Semaphore(max(ahead, 1))
        self._ready: queue.Queue[Batch] = queue.Queue()
        self._closed = False
        self._last_read = time.monotonic()
        self._in_hand = in_hand or InHand()
        self.stalled = False
        """Whether the iterator ended because nothing had come for long."""
        for number in range(threads):
            threading.Thread(target=self._read, name=f"read-{number}", daemon=True).start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Waits for the next batch.  Ends after the last one, when closed, and when nothing has come for long."""
        while self._owed and not self._closed:
            try:
                batch = self._ready.get(timeout=0.05)
            except queue.Empty:
                if time.monotonic() - self._last_read > self._patience_s:
                    self.stalled = True
                    self.close()
                continue
            with self._lock:
                self._owed.discard(batch.number)
            self._room.release()
            return batch
        raise StopIteration

    def close(self) -> None:
        """Begin no further read."""
        self._closed = True
        self._room.release()

    @property
    def missing(self) -> list[str]:
        """Studies that were not handed over."""
        with self._lock:
            return [study for number in sorted(self._owed) for study in self._batches[number]]

    def _read(self) -> None:
        while True:
            self._room.acquire()
            with self._lock:
                number = next(self._numbers, None)
            if number is None or self._closed:
                self._room.release()  # for the other readers, which end likewise
                return
            self._ready.put(Batch(number, [self._read_one(study) for study in self._batches[number]]))

    def _read_one(self, study_id: str) -> Study:
        started = time.monotonic()
        self._in_hand.take([study_id])
        study = _read_isolated(self._images / study_id, study_id, self._series.get(study_id, ()))
        self._in_hand.release([study_id])
        self._last_read = time.monotonic()
        self._budget.record("read", self._last_read - started)
        return study


def read_ahead(images: Path, series: Series, studies: Sequence[str], budget: Budget) -> Iterator[Study]:
    """The studies one by one, in order, read by one thread."""
    for batch in ReadAhead(images, series, [[study] for study in studies], budget, patience_s=float("inf")):
        yield from batch.studies


def _read_isolated(folder: Path, study_id: str, series: Sequence[tuple[str, str]]) -> Study:
    """A study that breaks the reader in a way nobody foresaw costs itself, not the run."""
    if not series:
        problem = Problem(study_id, "", "no-series", "the series table lists no usable series of this study")
        return Study(study_id, (), [problem])
    try:
        study = read_study(folder, study_id, series)
        study.problems += gaps(study)
        return study
    except Exception as error:  # noqa: BLE001 - the named, counted last resort
        return Study(study_id, (), [Problem(study_id, "", "study-unreadable", f"{type(error).__name__}: {error}")])
