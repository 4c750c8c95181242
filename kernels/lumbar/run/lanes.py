"""One pass of some networks over studies: a lane for each device, and one window of studies read ahead.

A lane is a thread that takes batches.  The thread that called waits, keeps what comes, gives up lanes that hang, and
goes on when the time is up, whatever a lane or a disk is doing then.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tqdm import tqdm

from .clock import FINISH_S
from .device_worker import Answered, Crew
from .in_progress import InHand
from .read_ahead import LONGEST_TICK_S, Batch, ReadAhead
from .schedule import Effort

WAIT_S = 0.2
Decide = Callable[[Crew, Batch], Effort]
Work = Callable[[Crew, Batch, Effort], Answered]


@dataclass
class Outcome:
    """How a pass ended."""

    out_of_time: bool = False
    lost: dict[Crew, str] = field(default_factory=dict)
    """Crews whose device failed as a whole, or hangs, and why."""


class Pass:
    """Runs a lane on each crew until no batch is left."""

    def __init__(
        self,
        crews: list[Crew],
        names: set[str],
        graders: set[str],
        reading: ReadAhead,
        in_hand: InHand,
        patience_s: float,
    ) -> None:
        self._crews, self._names, self._graders = crews, names, graders
        self._reading, self._in_hand, self._patience_s = reading, in_hand, patience_s
        self._results: queue.Queue[tuple[Crew, Answered | Outcome | None]] = queue.Queue()
        self._working: dict[Crew, list[str]] = {}

    def run(
        self, decide: Decide, work: Work, keep: Callable[[Answered], None], left_s: Callable[[], float], bar: tqdm
    ) -> Outcome:
        """`decide` says how a batch is treated, `work` treats it, `keep` takes what came of it, in this thread."""
        outcome, running = Outcome(), set(self._crews)
        for crew in self._crews:
            crew.silent_s = 0.0
            given = (crew, decide, work)
            threading.Thread(target=self._lane, args=given, name=f"lane-{crew.device}", daemon=True).start()
        looked = time.monotonic()
        while running and left_s() > FINISH_S / 2:
            now = time.monotonic()
            passed, looked = min(now - looked, LONGEST_TICK_S), now
            for crew in [crew for crew in running if self._hangs(crew, passed)]:
                outcome.lost[crew] = f"nothing came of it for {self._patience_s:.0f} s"
                self._in_hand.release(self._working.pop(crew, []))
                running.discard(crew)
            try:
                crew, result = self._results.get(timeout=WAIT_S)
            except queue.Empty:
                continue
            if result is None:
                running.discard(crew)
            elif isinstance(result, Outcome):
                outcome.out_of_time |= result.out_of_time
                outcome.lost |= result.lost
            elif crew in running:
                keep(result)
                bar.update(len(result.batch.studies))
        outcome.out_of_time |= bool(running)
        self._reading.close()
        return outcome

    def _hangs(self, crew: Crew, passed_s: float) -> bool:
        """Whether a lane has begun nothing for too long: neither a network nor a load takes minutes."""
        if crew not in self._working:
            return False
        crew.silent_s += passed_s
        return crew.silent_s > self._patience_s

    def _lane(self, crew: Crew, decide: Decide, work: Work) -> None:
        try:
            self._working[crew] = []
            crew.keep(self._names)
            del self._working[crew]
            for batch in self._reading if self._graders & crew.members.keys() else ():
                effort = decide(crew, batch)
                if not effort.jobs:
                    self._results.put((crew, Outcome(out_of_time=True)))
                    self._reading.close()
                    break
                studies = [study.study_id for study in batch.studies]
                crew.silent_s, self._working[crew] = 0.0, studies
                self._in_hand.take(studies)
                answered = work(crew, batch, effort)
                if self._working.pop(crew, None) is None:
                    return  # given up meanwhile; others have its batch
                self._in_hand.release(studies)
                self._results.put((crew, answered))
        except Exception as error:  # noqa: BLE001 - a lane that dies unheard would be waited for until the time is up
            self._in_hand.release(self._working.pop(crew, []))
            self._results.put((crew, Outcome(lost={crew: f"{type(error).__name__}: {error}"})))
        self._results.put((crew, None))
