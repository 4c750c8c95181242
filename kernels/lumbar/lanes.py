"""One pass of some networks over all studies: a lane for each device, and one window of studies read ahead.

A lane is a thread that takes batches.  The thread that called waits, keeps what comes, and goes on when the time is up,
whatever a lane or a disk is doing then.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tqdm import tqdm

from .budget import FINISH_S
from .crew import Answered, Crew
from .in_hand import InHand
from .reading import Batch, ReadAhead
from .schedule import Effort

WAIT_S = 0.2
Decide = Callable[[Crew, Batch], Effort]
Work = Callable[[Crew, Batch, Effort], Answered]


@dataclass
class Outcome:
    """How a pass ended."""

    out_of_time: bool = False
    lost: dict[Crew, str] = field(default_factory=dict)
    """Crews whose device failed as a whole, and why."""


class Pass:
    """Runs a lane on each crew until no batch is left."""

    def __init__(
        self, crews: list[Crew], names: set[str], graders: set[str], reading: ReadAhead, in_hand: InHand
    ) -> None:
        self._crews, self._names, self._graders = crews, names, graders
        self._reading, self._in_hand = reading, in_hand
        self._results: queue.Queue[Answered | Outcome | None] = queue.Queue()

    def run(
        self, decide: Decide, work: Work, keep: Callable[[Answered], None], left_s: Callable[[], float], bar: tqdm
    ) -> Outcome:
        """`decide` says how a batch is treated, `work` treats it, `keep` takes what came of it, in this thread."""
        outcome, running = Outcome(), len(self._crews)
        for crew in self._crews:
            given = (crew, decide, work)
            threading.Thread(target=self._lane, args=given, name=f"lane-{crew.device}", daemon=True).start()
        while running and left_s() > FINISH_S / 2:
            try:
                result = self._results.get(timeout=WAIT_S)
            except queue.Empty:
                continue
            if result is None:
                running -= 1
            elif isinstance(result, Outcome):
                outcome.out_of_time |= result.out_of_time
                outcome.lost |= result.lost
            else:
                keep(result)
                bar.update(len(result.batch.studies))
        outcome.out_of_time |= running > 0
        self._reading.close()
        return outcome

    def _lane(self, crew: Crew, decide: Decide, work: Work) -> None:
        try:
            crew.keep(self._names)
            for batch in self._reading if self._graders & crew.members.keys() else ():
                effort = decide(crew, batch)
                if not effort.jobs:
                    self._results.put(Outcome(out_of_time=True))
                    self._reading.close()
                    break
                studies = [study.study_id for study in batch.studies]
                self._in_hand.take(studies)
                self._results.put(work(crew, batch, effort))
                self._in_hand.release(studies)
        except Exception as error:  # noqa: BLE001 - a lane that dies unheard would be waited for until the time is up
            self._results.put(Outcome(lost={crew: f"{type(error).__name__}: {error}"}))
        self._results.put(None)
