"""Rounds over all studies, each with a few more networks; in a round a few threads per device take batches."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ..networks.devices import studies_at_once
from ..problems import Problem
from .clock import FINISH_S, PATIENCE_S, Clock
from .device_time import Lane
from .device_worker import BatchAnswers, DeviceWorker
from .in_progress import InProgress
from .kept_studies import KeptStudies
from .read_ahead import LONGEST_TICK_S, LOOK_AHEAD, ReadAhead, Series, StudyBatch
from .results import Job, Results
from .schedule import Schedule

WAIT_S = 0.2
# How often a round is started for the studies that lost workers had in progress.
ATTEMPTS = 2
Answer = Callable[[DeviceWorker, Lane, StudyBatch], BatchAnswers | None]
Keep = Callable[[Sequence[str]], None]


class DevicesLost(Exception):
    """All devices are lost; they may work again in a new process."""


@dataclass(frozen=True)
class Resources:
    """Clock, devices, batch size and read timeout of a run, and its journal of studies in progress."""

    clock: Clock
    devices: Sequence[torch.device]
    in_progress: InProgress
    at_once: int | None = None
    """Batch size in studies; None = the default of the devices."""
    patience_s: float = PATIENCE_S
    """Timeout: seconds without a study read, without a forward of a batch, or without a network loaded."""


@dataclass(frozen=True)
class Round:
    """One entry of `rounds` in the report."""

    networks: tuple[str, ...]
    studies: int
    """Studies that all of the networks were run on."""
    seconds: float


@dataclass(frozen=True)
class _Ended:
    """Last message of a thread."""

    out_of_time: bool = False
    lost: str = ""
    """Why the device is lost; empty where it is not."""


class WorkerPool:
    """One thread per lane of each worker; all take batches from one reader until none is left."""

    def __init__(
        self, workers: Sequence[DeviceWorker], reading: ReadAhead, in_progress: InProgress, patience_s: float
    ) -> None:
        self._running = {lane: worker for worker in workers for lane in worker.lanes}
        """Lane → its worker, until the thread of the lane has ended or the device is lost."""
        self._reading, self._in_progress, self._patience_s = reading, in_progress, patience_s
        self._messages: queue.Queue[tuple[Lane, BatchAnswers | _Ended]] = queue.Queue()
        self._busy: dict[Lane, list[str]] = {}
        """Lane → studies of its batch, while it loads networks (none) or works on a batch."""
        self.out_of_time = False
        self.lost: dict[DeviceWorker, str] = {}
        """Workers whose device failed or hangs, and why."""
        self.hung: list[str] = []
        """Studies of the batches that hang, still in progress by the journal: in a new process each runs alone."""

    def run(self, names: set[str], graders: set[str], answer: Answer, clock: Clock) -> Iterator[BatchAnswers]:
        """Load the members `names` and yield `answer` for each batch, which is None where no time is left.

        `graders`: a worker that could load none of these takes no batch.
        """
        for worker in dict.fromkeys(self._running.values()):
            worker.lanes[0].silent_s = 0.0
            self._start(self._load, worker, names, graders, answer)
        ticked = time.monotonic()
        while self._running and clock.left_s() > FINISH_S / 2:
            now = time.monotonic()
            passed_s, ticked = min(now - ticked, LONGEST_TICK_S), now
            for worker in dict.fromkeys(self._running.values()):
                if hung := self._hung(worker, passed_s):
                    self.hung += [study for lane in hung for study in self._busy.pop(lane, [])]
                    self._lose(worker, f"nothing came of it for {self._patience_s:.0f} s")
            try:
                lane, message = self._messages.get(timeout=WAIT_S)
            except queue.Empty:
                continue
            if lane not in self._running:
                continue  # its device was lost before
            if isinstance(message, BatchAnswers):
                yield message
                continue
            worker = self._running.pop(lane)
            self.out_of_time |= message.out_of_time
            if message.lost:
                self._lose(worker, message.lost)
        self.out_of_time |= bool(self._running)
        self._reading.close()

    def in_flight(self, worker: DeviceWorker | None = None) -> int:
        """Studies that are in flight on a worker, or on all."""
        lanes = None if worker is None else worker.lanes
        return sum(len(studies) for lane, studies in self._busy.copy().items() if lanes is None or lane in lanes)

    def _hung(self, worker: DeviceWorker, passed_s: float) -> list[Lane]:
        """The lanes that made no step for too long: neither a forward, nor a load, nor what is between takes minutes.

        Each by itself, as the other one of the device may go on for hours.
        """
        busy = [lane for lane in worker.lanes if lane in self._busy]
        for lane in busy:
            lane.silent_s += passed_s
        return [lane for lane in busy if lane.silent_s > self._patience_s]

    def _lose(self, worker: DeviceWorker, reason: str) -> None:
        """Leave a worker's batches in flight to the next attempt."""
        self.lost[worker] = reason
        for lane in worker.lanes:
            self._running.pop(lane, None)
            self._in_progress.release(self._busy.pop(lane, []))

    def _start(self, body: Callable[..., None], worker: DeviceWorker, *given: object) -> None:
        threading.Thread(target=body, args=(worker, *given), name=f"worker-{worker.device}", daemon=True).start()

    def _load(self, worker: DeviceWorker, names: set[str], graders: set[str], answer: Answer) -> None:
        """Body of a worker's first thread: load the networks, then go through the batches, with one more per lane."""
        first, *others = worker.lanes
        self._busy[first] = []
        try:
            worker.load(names)
            is_of_use = bool(graders & worker.members.keys())
        except Exception as error:  # noqa: BLE001 - a thread that ends without a message would be waited for
            self._busy.pop(first, None)
            self._messages.put((first, _Ended(lost=f"{type(error).__name__}: {error}")))
            return
        if self._busy.pop(first, None) is None:
            return  # timed out meanwhile
        for lane in others if is_of_use else ():
            self._start(self._work, worker, lane, answer)
        if is_of_use:
            self._work(worker, first, answer)
        else:
            for lane in worker.lanes:
                self._messages.put((lane, _Ended()))

    def _work(self, worker: DeviceWorker, lane: Lane, answer: Answer) -> None:
        """Body of a lane's thread: one batch after the other."""
        ended = _Ended()
        try:
            for batch in self._reading:
                if worker in self.lost:
                    return  # the next attempt has this batch
                studies = list(batch.names)
                lane.silent_s, self._busy[lane] = 0.0, studies
                self._in_progress.take(studies)
                answers = answer(worker, lane, batch)
                if self._busy.pop(lane, None) is None:
                    return  # lost meanwhile: the next attempt has this batch
                self._in_progress.release(studies)
                if answers is None:
                    ended = _Ended(out_of_time=True)
                    self._reading.close()
                    break
                self._messages.put((lane, answers))
        except Exception as error:  # noqa: BLE001 - as above
            self._in_progress.release(self._busy.pop(lane, []))
            ended = _Ended(lost=f"{type(error).__name__}: {error}")
        self._messages.put((lane, ended))


class Rounds:
    """One run over all studies."""

    def __init__(self, results: Results, weights: Path, images: Path, series: Series, resources: Resources) -> None:
        self.results, self._images, self._series, self._resources = results, images, series, resources
        self.clock, devices = resources.clock, resources.devices
        self.workers = [DeviceWorker(results.manifest, weights, device, self.clock) for device in devices]
        self._at_once = resources.at_once or studies_at_once(devices)
        self._readers = max(1, min(2 * len(devices), (os.cpu_count() or 1) - len(devices)))
        self.schedule = Schedule(results.manifest, self.clock, len(results.studies), len(devices), self._readers)
        self._abandoned = set(resources.in_progress.abandoned)
        self._left = [job for job in self.schedule.order if self._pending([job])]
        self._untaken = 0
        self._kept = KeptStudies()
        self._lock = threading.Lock()
        self.done: list[Round] = []
        self.precision: dict[str, str] = {}
        """Precision of each member that was loaded."""

    def run(self, keep: Keep) -> None:
        """Run until all jobs are done or the time is up; `keep` gets the studies of each batch.  Raises DevicesLost."""
        for study in self._abandoned:
            self._problem(study, "", "given-up", "the kernel died more than once while this study was in progress")
        is_over = False
        while self._left and not is_over and self.clock.available_s() > 0:
            jobs = self.schedule.next_round(self._left, len(self._kept))
            self._left = [job for job in self._left if job not in jobs]
            self._kept.is_open = bool(self._left)
            is_over = self._timed_round(jobs, keep)
        # Jobs and passes that were dropped while time or a device's memory was short may fit now.
        again = tuple(job for job in self.schedule.order if job[1] not in self.unusable and self._pending([job]))
        if again and not self._left and self.clock.available_s() > 0:
            self._timed_round(again, keep)
        self._report_dropped()
        self.results.sort_problems()

    def _timed_round(self, jobs: tuple[Job, ...], keep: Keep) -> bool:
        started = time.monotonic()
        out_of_time = self._round(jobs, keep)
        studies = int(self.results.passes_of(jobs).all(1).sum())
        self.done.append(Round(tuple(job[1] for job in jobs), studies, round(time.monotonic() - started, 3)))
        return out_of_time

    def _round(self, jobs: tuple[Job, ...], keep: Keep) -> bool:
        """Run jobs on all pending studies, again where a device was lost meanwhile.  Whether the time is up."""
        for _ in range(ATTEMPTS):
            any_lost = False
            for studies in self._resources.in_progress.groups(self._pending(jobs)):
                pool = self._run_studies(jobs, studies, keep)
                for worker, reason in pool.lost.items():
                    self._problem("", str(worker.device), "device-lost", reason)
                    self.workers.remove(worker)
                if not self.workers:
                    raise DevicesLost("; ".join(pool.lost.values()))
                self._resources.in_progress.release(pool.hung)  # another worker tries them
                self.schedule.workers = len(self.workers)
                any_lost |= bool(pool.lost)
                if pool.out_of_time:
                    return True
            if not any_lost:
                break
        return False

    def _run_studies(self, jobs: tuple[Job, ...], studies: list[str], keep: Keep) -> WorkerPool:
        """Run jobs on studies, in batches, on all devices."""
        in_progress, patience_s = self._resources.in_progress, self._resources.patience_s
        batches = [studies[start : start + self._at_once] for start in range(0, len(studies), self._at_once)]
        window = max(self._readers, LOOK_AHEAD * len(self.workers))
        given = (self._images, self._series, batches, self.clock, in_progress)
        reading = ReadAhead(*given, threads=self._readers, ahead=window, patience_s=patience_s, kept=self._kept)
        self._untaken = len(studies)
        graders = {grader for _, grader in jobs}
        unlocated = {route for route, _ in jobs if self.results.unlocated(route)}
        names = graders.union(*(self.schedule.localisers(route, True) for route in unlocated))
        pool = WorkerPool(self.workers, reading, in_progress, patience_s)
        label = f"round {len(self.done) + 1}, {len(jobs)} network{'s' if len(jobs) > 1 else ''}"
        with tqdm(total=len(studies), unit="study", desc=label) as bar:
            for answers in pool.run(names, graders, lambda *given: self._answer(jobs, pool, *given), self.clock):
                self._merge(answers)
                keep(answers.batch.names)
                bar.update(len(answers.batch.names))
        for worker in self.workers:
            self.results.problems.update(dict.fromkeys([*worker.unusable.values(), *worker.refused]))
            self.precision |= worker.precision
        self._abandoned |= reading.stalled
        self.schedule.studies = len(self.results.studies) - len(self._abandoned)
        return pool

    def _answer(
        self, jobs: tuple[Job, ...], pool: WorkerPool, worker: DeviceWorker, lane: Lane, batch: StudyBatch
    ) -> BatchAnswers | None:
        """Called in the lane's thread.  None where no time is left for any job."""
        with self._lock:
            self._untaken -= len(batch.studies)
            # In full, as their progress is unknown: too much is dropped rather than too little.
            studies, here = self._untaken + pool.in_flight(), pool.in_flight(worker)
        usable = [job for job in jobs if job[1] in worker.members]
        unlocated = self.results.unlocated
        effort = self.schedule.effort(usable, studies, self._left, unlocated, here, worker.golden_s)
        return worker.work(lane, batch, effort, self.results, self.schedule) if effort.jobs else None

    def _merge(self, answers: BatchAnswers) -> None:
        for route, found in answers.routes.items():
            self.results.add(answers.batch.names, route, found, answers.effort.tta)
        for study in answers.batch.studies:
            self.results.add_images(study)
            self.results.problems.update(dict.fromkeys(study.problems))

    def _pending(self, jobs: Sequence[Job]) -> list[str]:
        """Studies that lack one of some jobs, or passes of it, and are not abandoned."""
        pairs = zip(self.results.studies, self.results.lacking(jobs), strict=True)
        return [study for study, lacking in pairs if lacking.any() and study not in self._abandoned]

    def _report_dropped(self) -> None:
        """Record what there was no time for: which answers are not those of the whole ensemble."""
        asked, unusable = len(self.results.studies), self.unusable
        kept = [study not in self._abandoned for study in self.results.studies]
        for job in self.schedule.order:
            undone = int((self.results.passes_of([job])[kept] == 0).sum())
            if undone and job[1] not in unusable:
                kind = "fold-dropped" if self.schedule.ranks[job[1]] else "member-dropped"
                self._problem("", job[1], kind, f"route {job[0]}: no time was left for {undone} of {asked} studies")
        order = self.schedule.order
        if short := int(((self.results.passes_of(order) > 0) & self.results.lacking(order)).sum()):
            detail = f"{short} answers of networks to studies are without test-time augmentation, for want of time"
            self._problem("", "clock", "tta-dropped", detail)
        if ungraded := len(set(self.results.studies) - set(self.results.graded()) - self._abandoned):
            if not unusable.issuperset(grader for _, grader in self.schedule.order):
                self._problem("", "clock", "out-of-time", f"{ungraded} studies keep their prior")

    @property
    def unusable(self) -> set[str]:
        """The members that could not be loaded."""
        return {name for worker in self.workers for name in worker.unusable}

    def _problem(self, study: str, where: str, kind: str, detail: str) -> None:
        self.results.problems[Problem(study, where, kind, detail)] = None
