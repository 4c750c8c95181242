"""Studies are read ahead of the models by threads of their own, a bounded window: memory stays flat in their number."""

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

# Batches read ahead of the models: measured to keep these 98 % busy.
LOOK_AHEAD = 2
TICK_S = 0.05
# A pause of the whole process, or of the machine, is not time that a read has taken.
LONGEST_TICK_S = 0.5
Series = Mapping[str, Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class StudyBatch:
    """Studies that go through the networks together; `number`: where they stand in the order of work."""

    number: int
    studies: list[Study]


@dataclass
class _Reading:
    """A batch that is being read; `reader`: who does it, by a mark of his own."""

    number: int
    names: Sequence[str]
    reader: object
    studies: list[Study] = field(default_factory=list)
    waited_s: float = 0.0
    """For the study that is being read now, while nothing else was there to work on."""


class ReadAhead:
    """An iterator over batches of studies, which several threads may share.

    One reading thread hands them over in order; of several, each as it is ready.  A read that never comes back costs
    its study alone: another thread carries on with the batch.  Nor does it hold up the end of the process.
    """

    def __init__(
        self,
        images: Path,
        series: Series,
        batches: Sequence[Sequence[str]],
        budget: Clock,
        in_progress: InProgress | None = None,
        threads: int = 1,
        ahead: int = LOOK_AHEAD,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._images, self._series, self._budget, self._patience_s = images, series, budget, patience_s
        self._batches = batches
        self._numbers = iter(range(len(batches)))
        self._owed = len(batches)
        self._lock = threading.Lock()
        self._room = threading.Semaphore(max(ahead, threads, 1))
        self._ready: queue.Queue[StudyBatch] = queue.Queue()
        self._begun: dict[int, _Reading] = {}
        self._closed = False
        self._ticked = time.monotonic()
        self._in_progress = in_progress or InProgress()
        self.stalled: set[str] = set()
        """Studies whose reading was given up."""
        for _ in range(threads):
            self._start(self._read)

    def __iter__(self) -> Iterator[StudyBatch]:
        return self

    def __next__(self) -> StudyBatch:
        """Waits for the next batch.  Ends after the last one, and when closed."""
        while self._owed and not self._closed:
            try:
                batch = self._ready.get(timeout=TICK_S)
            except queue.Empty:
                self._tick()
                continue
            with self._lock:
                self._owed -= 1
            self._room.release()
            return batch
        raise StopIteration

    def close(self) -> None:
        """Begin no further read."""
        self._closed = True
        self._room.release()

    def _tick(self) -> None:
        """Somebody waits, and nothing is there: after long enough what holds it up is given up."""
        with self._lock:
            now = time.monotonic()
            passed, self._ticked = min(now - self._ticked, LONGEST_TICK_S), now
            late = []
            for one in self._begun.values():
                one.waited_s += passed
                if one.waited_s > self._patience_s:
                    late.append(one)
            for one in late:
                self._give_up(one)

    def _give_up(self, one: _Reading) -> None:
        name = one.names[len(one.studies)]
        detail = f"its files did not come within {self._patience_s:.0f} s: no later round waits for it"
        one.studies.append(Study(name, (), [Problem(name, "", "reading-stalled", detail)]))
        self.stalled.add(name)
        self._in_progress.release([name])
        one.reader, one.waited_s = object(), 0.0
        self._start(self._read_from, one, one.reader)

    def _start(self, work: object, *given: object) -> None:
        threading.Thread(target=work, args=given, name="read", daemon=True).start()  # type: ignore[arg-type]

    def _read_from(self, one: _Reading, reader: object) -> None:
        """Carry on with a batch where another reader hangs, and then in his place."""
        if self._finish(one, reader):
            self._read()

    def _read(self) -> None:
        while True:
            self._room.acquire()
            with self._lock:
                number = next(self._numbers, None)
                if number is None or self._closed:
                    self._room.release()  # for the other readers, which end likewise
                    return
                reader = object()
                one = self._begun[number] = _Reading(number, self._batches[number], reader)
            if not self._finish(one, reader):
                return

    def _finish(self, one: _Reading, reader: object) -> bool:
        """Read what is left of a batch and hand it over; False where another reader has taken over meanwhile."""
        while len(one.studies) < len(one.names):
            name = one.names[len(one.studies)]
            self._in_progress.take([name])
            study = self._read_one(name)
            with self._lock:
                if one.reader is not reader:
                    return False
                one.studies.append(study)
                one.waited_s = 0.0
            self._in_progress.release([name])
        with self._lock:
            del self._begun[one.number]
        self._ready.put(StudyBatch(one.number, one.studies))
        return True

    def _read_one(self, study_id: str) -> Study:
        started = time.monotonic()
        study = _read_isolated(self._images / study_id, study_id, self._series.get(study_id, ()))
        self._budget.record("read", time.monotonic() - started)
        return study


def read_ahead(images: Path, series: Series, studies: Sequence[str], budget: Clock) -> Iterator[Study]:
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
