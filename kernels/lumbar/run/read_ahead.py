"""Reader threads decode studies ahead of the networks, in a bounded window: memory does not grow with the studies."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..dicom.read_study import read_study
from ..dicom.study import Study, gaps
from ..problems import Problem
from .clock import PATIENCE_S, Clock
from .in_progress import InProgress
from .kept_studies import KeptStudies

# Batches read ahead of the networks: measured to keep these 98 % busy.
LOOK_AHEAD = 2
TICK_S = 0.05
# A longer tick is a pause of the process or the machine, and does not count as time of a read.
LONGEST_TICK_S = 0.5
Series = Mapping[str, Sequence[tuple[str, str]]]


@dataclass(eq=False)
class StudyBatch:
    """Studies that go through the networks together; complete once all `names` are read."""

    names: Sequence[str]
    reader: object = field(default_factory=object)
    """Token of the owning thread; a thread whose token no longer matches was replaced."""
    studies: list[Study] = field(default_factory=list)
    waited_s: float = 0.0
    """Seconds that the networks were idle during the current read."""


class ReadAhead:
    """Iterator over complete batches, which several threads may share.

    A single reader thread keeps the order of the batches; several deliver each as it is ready.  A read that times out
    is replaced by a Problem of its study, another thread continues the batch, and the process can exit regardless.
    """

    def __init__(
        self,
        images: Path,
        series: Series,
        batches: Sequence[Sequence[str]],
        clock: Clock,
        in_progress: InProgress | None = None,
        threads: int = 1,
        ahead: int = LOOK_AHEAD,
        patience_s: float = PATIENCE_S,
        kept: KeptStudies | None = None,
    ) -> None:
        self._images, self._series, self._clock, self._patience_s = images, series, clock, patience_s
        self._unread = [StudyBatch(names) for names in reversed(batches)]
        self._undelivered = len(batches)
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(max(ahead, threads, 1))
        self._ready: queue.Queue[StudyBatch] = queue.Queue()
        self._reading: list[StudyBatch] = []
        self._closed = False
        self._ticked = time.monotonic()
        self._in_progress = in_progress or InProgress()
        self._kept = KeptStudies(0) if kept is None else kept
        self.stalled: set[str] = set()
        """Studies whose read timed out."""
        for _ in range(threads):
            self._start()

    def __iter__(self) -> Iterator[StudyBatch]:
        return self

    def __next__(self) -> StudyBatch:
        """The next complete batch, waiting for it.  Ends after the last one, and when closed."""
        while self._undelivered and not self._closed:
            try:
                batch = self._ready.get(timeout=TICK_S)
            except queue.Empty:
                self._time_out()
                continue
            with self._lock:
                self._undelivered -= 1
            self._slots.release()
            return batch
        raise StopIteration

    def close(self) -> None:
        """Begin no further batch."""
        self._closed = True
        self._slots.release()

    def _time_out(self) -> None:
        """While the networks are idle: skip the study of every read that takes too long."""
        with self._lock:
            now = time.monotonic()
            passed_s, self._ticked = min(now - self._ticked, LONGEST_TICK_S), now
            for batch in self._reading:
                batch.waited_s += passed_s
                if batch.waited_s > self._patience_s:
                    name = batch.names[len(batch.studies)]
                    detail = f"its files did not come within {self._patience_s:.0f} s: no later round waits for it"
                    batch.studies.append(Study(name, (), [Problem(name, "", "reading-stalled", detail)]))
                    self.stalled.add(name)
                    self._in_progress.release([name])
                    batch.reader, batch.waited_s = object(), 0.0
                    self._start((batch, batch.reader))

    def _start(self, taken: tuple[StudyBatch, object] | None = None) -> None:
        threading.Thread(target=self._read, args=(taken,), name="read", daemon=True).start()

    def _read(self, taken: tuple[StudyBatch, object] | None) -> None:
        """Body of a reader thread: complete the batch of a replaced thread first, then one batch after the other."""
        while taken := taken or self._next():
            if not self._complete(*taken):
                return
            taken = None

    def _next(self) -> tuple[StudyBatch, object] | None:
        """An unread batch and this thread's token for it; None after the last one, and when closed."""
        self._slots.acquire()
        with self._lock:
            if self._closed or not self._unread:
                self._slots.release()  # for the other readers, which end likewise
                return None
            batch = self._unread.pop()
            self._reading.append(batch)
            return batch, batch.reader

    def _complete(self, batch: StudyBatch, reader: object) -> bool:
        """Read the remaining studies of a batch and deliver it; False where the thread was replaced meanwhile."""
        while len(batch.studies) < len(batch.names):
            name = batch.names[len(batch.studies)]
            kept = self._kept.get(name)
            study = kept or self._read_study(name)
            with self._lock:
                if batch.reader is not reader:
                    return False
                self._kept.keep(study)  # before the networks add problems to it
                batch.studies.append(study)
                batch.waited_s = 0.0
            if kept is None:
                self._in_progress.release([name])
        with self._lock:
            self._reading.remove(batch)
        self._ready.put(batch)
        return True

    def _read_study(self, name: str) -> Study:
        self._in_progress.take([name])
        started = time.monotonic()
        study = _read_isolated(self._images / name, name, self._series.get(name, ()))
        seconds = time.monotonic() - started
        self._clock.record("read", seconds)
        self._clock.record_studies([name], seconds)
        return study


def read_ahead(images: Path, series: Series, studies: Sequence[str], clock: Clock) -> Iterator[Study]:
    """The studies one by one, in order, read by one thread."""
    for batch in ReadAhead(images, series, [[study] for study in studies], clock, patience_s=float("inf")):
        yield from batch.studies


def _read_isolated(folder: Path, study_id: str, series: Sequence[tuple[str, str]]) -> Study:
    """The study; any exception of the reader becomes a Problem of it."""
    if not series:
        problem = Problem(study_id, "", "no-series", "the series table lists no usable series of this study")
        return Study(study_id, (), [problem])
    try:
        study = read_study(folder, study_id, series)
        study.problems += gaps(study)
        return study
    except Exception as error:  # noqa: BLE001 - the named, counted last resort
        return Study(study_id, (), [Problem(study_id, "", "study-unreadable", f"{type(error).__name__}: {error}")])
