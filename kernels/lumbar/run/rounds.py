"""All studies again and again, each time through a few more networks; after each round every study is better."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from ..networks.devices import studies_at_once
from ..problems import Problem
from .clock import FINISH_S, PATIENCE_S, Clock
from .device_worker import Answered, DeviceWorker
from .in_progress import InProgress
from .read_ahead import LONGEST_TICK_S, LOOK_AHEAD, ReadAhead, Series, StudyBatch
from .results import Job, Results
from .schedule import Effort, Schedule

WAIT_S = 0.2
Decide = Callable[[DeviceWorker, StudyBatch], Effort]
Work = Callable[[DeviceWorker, StudyBatch, Effort], Answered]


@dataclass
class Outcome:
    """How a pass ended."""

    out_of_time: bool = False
    lost: dict[DeviceWorker, str] = field(default_factory=dict)
    """Workers whose device failed as a whole, or hangs, and why."""


class Pass:
    """Runs a lane on each worker until no batch is left."""

    def __init__(
        self,
        workers: list[DeviceWorker],
        names: set[str],
        graders: set[str],
        reading: ReadAhead,
        in_progress: InProgress,
        patience_s: float,
    ) -> None:
        self._workers, self._names, self._graders = workers, names, graders
        self._reading, self._in_progress, self._patience_s = reading, in_progress, patience_s
        self._results: queue.Queue[tuple[DeviceWorker, Answered | Outcome | None]] = queue.Queue()
        self._working: dict[DeviceWorker, list[str]] = {}

    def run(
        self, decide: Decide, work: Work, keep: Callable[[Answered], None], left_s: Callable[[], float], bar: tqdm
    ) -> Outcome:
        """`decide` says how a batch is treated, `work` treats it, `keep` takes what came of it, in this thread."""
        outcome, running = Outcome(), set(self._workers)
        for worker in self._workers:
            worker.silent_s = 0.0
            given = (worker, decide, work)
            threading.Thread(target=self._lane, args=given, name=f"lane-{worker.device}", daemon=True).start()
        looked = time.monotonic()
        while running and left_s() > FINISH_S / 2:
            now = time.monotonic()
            passed, looked = min(now - looked, LONGEST_TICK_S), now
            for worker in [worker for worker in running if self._hangs(worker, passed)]:
                outcome.lost[worker] = f"nothing came of it for {self._patience_s:.0f} s"
                self._in_progress.release(self._working.pop(worker, []))
                running.discard(worker)
            try:
                worker, result = self._results.get(timeout=WAIT_S)
            except queue.Empty:
                continue
            if result is None:
                running.discard(worker)
            elif isinstance(result, Outcome):
                outcome.out_of_time |= result.out_of_time
                outcome.lost |= result.lost
            elif worker in running:
                keep(result)
                bar.update(len(result.batch.studies))
        outcome.out_of_time |= bool(running)
        self._reading.close()
        return outcome

    def _hangs(self, worker: DeviceWorker, passed_s: float) -> bool:
        """Whether a lane has begun nothing for too long: neither a network nor a load takes minutes."""
        if worker not in self._working:
            return False
        worker.silent_s += passed_s
        return worker.silent_s > self._patience_s

    def _lane(self, worker: DeviceWorker, decide: Decide, work: Work) -> None:
        try:
            self._working[worker] = []
            worker.keep(self._names)
            del self._working[worker]
            for batch in self._reading if self._graders & worker.members.keys() else ():
                effort = decide(worker, batch)
                if not effort.jobs:
                    self._results.put((worker, Outcome(out_of_time=True)))
                    self._reading.close()
                    break
                studies = [study.study_id for study in batch.studies]
                worker.silent_s, self._working[worker] = 0.0, studies
                self._in_progress.take(studies)
                answered = work(worker, batch, effort)
                if self._working.pop(worker, None) is None:
                    return  # given up meanwhile; others have its batch
                self._in_progress.release(studies)
                self._results.put((worker, answered))
        except Exception as error:  # noqa: BLE001 - a lane that dies unheard would be waited for until the time is up
            self._in_progress.release(self._working.pop(worker, []))
            self._results.put((worker, Outcome(lost={worker: f"{type(error).__name__}: {error}"})))
        self._results.put((worker, None))


# How often a round is begun for the studies that a lost lane had in hand.
ATTEMPTS = 2
Keep = Callable[[Sequence[str]], None]


class DevicesLost(Exception):
    """No device answers any more; a new process may find them well again."""


@dataclass(frozen=True)
class Resources:
    """What a run has to work with."""

    budget: Clock
    devices: Sequence[torch.device]
    in_progress: InProgress
    at_once: int | None = None
    """Studies that go through a network together; None = what suits the devices."""
    patience_s: float = PATIENCE_S
    """Seconds without a study read after which the reads in hand are given up."""


@dataclass(frozen=True)
class Round:
    """What the report says of one round."""

    networks: tuple[str, ...]
    studies: int
    """Those that all of its networks have seen."""
    seconds: float


class Rounds:
    """One run over all studies."""

    def __init__(
        self,
        store: Results,
        weights: Path,
        images: Path,
        series: Series,
        means: Resources,
    ) -> None:
        self.store, self._images, self._series = store, images, series
        self.budget, self._in_progress, self._patience_s = means.budget, means.in_progress, means.patience_s
        devices = means.devices
        self.workers = [DeviceWorker(store.manifest, weights, device) for device in devices]
        self._at_once = means.at_once or studies_at_once(devices)
        self._readers = max(1, min(2 * len(devices), (os.cpu_count() or 1) - len(devices)))
        self.schedule = Schedule(store.manifest, means.budget, len(store.studies), len(devices), self._readers)
        self._given_up = set(means.in_progress.given_up)
        self._left = [job for job in self.schedule.order if self._pending([job])]
        self._untaken = 0
        self._lock = threading.Lock()
        self.done: list[Round] = []
        self.precision: dict[str, str] = {}
        """What each member that was loaded computes in."""

    def run(self, keep: Keep) -> None:
        """Do all that there is time for.  `keep` is told of the studies that have new answers.  Raises DevicesLost."""
        for study in self._given_up:
            self._problem(study, "", "given-up", "the kernel died more than once while it had this study in hand")
        while self._left and self.budget.available_s() > 0:
            jobs = self.schedule.next_round(self._left)
            self._left = [job for job in self._left if job not in jobs]
            if self._timed_round(jobs, keep).out_of_time:
                break
        # What looked too slow for a moment, or had no room on one device, may have time and room now.
        again = tuple(job for job in self.schedule.order if job[1] not in self.unusable and self._pending([job]))
        if again and not self._left and self.budget.available_s() > 0:
            self._timed_round(again, keep)
        self._name_what_was_dropped()

    def _timed_round(self, jobs: tuple[Job, ...], keep: Keep) -> Outcome:
        started = time.monotonic()
        outcome = self._round(jobs, keep)
        studies = len(self.store.studies) - self._undone(jobs)
        self.done.append(Round(tuple(job[1] for job in jobs), studies, round(time.monotonic() - started, 3)))
        return outcome

    def _round(self, jobs: tuple[Job, ...], keep: Keep) -> Outcome:
        """A pass for all innocent studies together, and one for each suspect; all again where a device is lost."""
        outcome = Outcome()
        for _ in range(ATTEMPTS):
            lost = False
            for studies in self._in_progress.passes(self._pending(jobs)):
                outcome = self._pass(jobs, studies, keep)
                for worker, reason in outcome.lost.items():
                    self._problem("", str(worker.device), "device-lost", reason)
                    self.workers.remove(worker)
                if not self.workers:
                    raise DevicesLost("; ".join(outcome.lost.values()))
                self.schedule.lanes = len(self.workers)
                lost |= bool(outcome.lost)
                if outcome.out_of_time:
                    return outcome
            if not lost:
                break
        return outcome

    def _pass(self, jobs: tuple[Job, ...], studies: list[str], keep: Keep) -> Outcome:
        """One time over some studies, on all devices."""
        size = self._at_once
        batches = [studies[start : start + size] for start in range(0, len(studies), size)]
        window = max(self._readers, LOOK_AHEAD * len(self.workers))
        given = (self._images, self._series, batches, self.budget, self._in_progress)
        reading = ReadAhead(*given, threads=self._readers, ahead=window, patience_s=self._patience_s)
        self._untaken = len(studies)
        networks = [grader for _, grader in jobs]
        unlocated = {route for route, _ in jobs if self.store.unlocated(route)}
        names = {*networks, *(name for route in unlocated for name in self.schedule.localisers(route, True))}

        def merge(answered: Answered) -> None:
            self._merge(answered)
            keep([study.study_id for study in answered.batch.studies])

        label = f"round {len(self.done) + 1}, {len(networks)} network{'s' if len(networks) > 1 else ''}"
        with tqdm(total=len(studies), unit="study", desc=label) as bar:
            lanes = Pass(self.workers, names, set(networks), reading, self._in_progress, self._patience_s)
            outcome = lanes.run(partial(self._decide, jobs), self._work, merge, self.budget.left_s, bar)
        for worker in self.workers:
            self.store.problems.update(dict.fromkeys([*worker.problems.values(), *worker.refused]))
            self.precision |= worker.precision
        self._given_up |= reading.stalled
        self.schedule.studies = len(self.store.studies) - len(self._given_up)
        return outcome

    def _decide(self, jobs: tuple[Job, ...], worker: DeviceWorker, batch: StudyBatch) -> Effort:
        with self._lock:
            studies = self._untaken
            self._untaken -= len(batch.studies)
        usable = [job for job in jobs if job[1] in worker.members]
        given = (self._left, self.store.unlocated, len(batch.studies), worker.golden_s)
        return self.schedule.effort(usable, studies, *given)

    def _work(self, worker: DeviceWorker, batch: StudyBatch, effort: Effort) -> Answered:
        return worker.work(batch, effort, self.store, self.schedule, self.budget)

    def _merge(self, answered: Answered) -> None:
        studies, tta = answered.batch.studies, answered.effort.tta
        for route, located in answered.located.items():
            for study, found in zip(studies, located, strict=True):
                if not self.store.is_located(study.study_id, route):
                    self.store.set_located(study.study_id, route, found)
        for job, answers in answered.answers.items():
            passes = self._passes(job[1]) if tta else 1
            for study, rows in zip(studies, answers, strict=True):
                self.store.set_answers(study.study_id, job, rows, passes)
        for study in studies:
            self.store.problems.update(dict.fromkeys(study.problems))

    def _pending(self, jobs: Sequence[Job]) -> list[str]:
        """The studies that lack one of some jobs, or were shown to it too seldom, and are not given up."""
        short = {study for job in jobs for study in self.store.without_tta(job, self._passes(job[1]))}
        return [
            study
            for study in self.store.studies
            if study not in self._given_up
            and (study in short or not all(self.store.is_done(study, job) for job in jobs))
        ]

    def _undone(self, jobs: Sequence[Job]) -> int:
        return sum(not all(self.store.is_done(study, job) for job in jobs) for study in self.store.studies)

    def _name_what_was_dropped(self) -> None:
        """Say what there was no time for, so that nobody takes the answers for those of the whole ensemble."""
        asked, unusable = len(self.store.studies), self.unusable
        for job in self.schedule.order:
            undone = sum(not self.store.is_done(study, job) for study in set(self.store.studies) - self._given_up)
            if undone and job[1] not in unusable:
                kind = "fold-dropped" if self.schedule.ranks[job[1]] else "member-dropped"
                self._problem("", job[1], kind, f"route {job[0]}: no time was left for {undone} of {asked} studies")
        short = sum(len(self.store.without_tta(job, self._passes(job[1]))) for job in self.schedule.order)
        if short:
            detail = f"{short} answers of networks to studies are without test-time augmentation, for want of time"
            self._problem("", "clock", "tta-dropped", detail)
        if ungraded := len(set(self.store.studies) - set(self.store.graded()) - self._given_up):
            if not unusable.issuperset(grader for _, grader in self.schedule.order):
                self._problem("", "clock", "out-of-time", f"{ungraded} studies keep their prior")

    @property
    def unusable(self) -> set[str]:
        """The members that could not be loaded."""
        return {name for worker in self.workers for name in worker.problems}

    def _passes(self, name: str) -> int:
        return self.schedule.artefacts[name].member.passes

    def _problem(self, study: str, where: str, kind: str, detail: str) -> None:
        self.store.problems[Problem(study, where, kind, detail)] = None
