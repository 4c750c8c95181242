"""The members loaded on one device, and their answers for a batch of studies."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..answers.route import RouteAnswers, answer_route
from ..answers.spine_shape import Expectation
from ..manifest import Manifest
from ..networks.archives import archives_of
from ..networks.loading import LoadedMember, is_out_of_memory, load_fastest
from ..networks.weights import WeightsError
from ..problems import Problem
from .clock import Clock
from .device_time import DeviceTime, Lane
from .read_ahead import StudyBatch
from .results import Results
from .schedule import Effort, Schedule

# Cutting, and the arithmetic between two forwards of one batch, hide behind forwards of the other.  A third batch was
# not faster on two cores.
BATCHES_IN_FLIGHT = 2


@dataclass(frozen=True)
class BatchAnswers:
    """Landmarks and logits of a batch, by route."""

    batch: StudyBatch
    effort: Effort
    routes: dict[str, RouteAnswers]


class DeviceWorker:
    """The members of a manifest on one device: loaded when a round needs them, freed after it."""

    def __init__(self, manifest: Manifest, folder: Path, device: torch.device, clock: Clock) -> None:
        self.device = device
        self._artefacts = {artefact.member.name: artefact for artefact in manifest.artefacts}
        self._expectation = None if manifest.shape is None else Expectation(manifest.shape)
        self._reliability = {route.name: route.reliability for route in manifest.routes}
        self._folder, self._clock = folder, clock
        device_time = DeviceTime()
        self.lanes = [Lane(device_time, f"{device}-{number}") for number in range(batches_in_flight(device))]
        """One for each batch in flight."""
        self.members: dict[str, LoadedMember] = {}
        self.unusable: dict[str, Problem] = {}
        """Members that cannot be loaded."""
        self.precision: dict[str, str] = {}
        """Of all members that were ever loaded: half or single."""
        self.refused: list[Problem] = []
        """Members in single precision on a GPU or not optimised on a CPU, and why."""

    def load(self, names: Collection[str]) -> None:
        """Load these members and free all others."""
        self.members = {name: one for name, one in self.members.items() if name in names}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        missing = [self._artefacts[name] for name in names if name not in self.members and name not in self.unusable]
        with archives_of(self._folder).shared(missing) as archive_of:
            for artefact in missing:
                name = artefact.member.name
                self.lanes[0].silent_s = 0.0  # of the thread that loads
                try:
                    one = self.members[name] = load_fastest(artefact, archive_of(artefact), self.device)
                    self.precision[name] = one.precision
                    reasons = {"single-precision": one.refused, "not-optimised": one.unoptimised}
                    self.refused += [Problem("", name, kind, reason) for kind, reason in reasons.items() if reason]
                except WeightsError as error:
                    if is_out_of_memory(error):
                        continue  # another device, or a round with fewer networks, may have enough memory
                    self.unusable[name] = Problem("", name, "member-unusable", str(error))

    @property
    def golden_s(self) -> dict[str, float]:
        """Loaded member → seconds per row."""
        return {name: one.golden_s for name, one in self.members.items()}

    def work(self, lane: Lane, batch: StudyBatch, effort: Effort, results: Results, schedule: Schedule) -> BatchAnswers:
        """Run the jobs of an effort on a batch; routes without landmarks are located first."""
        routes, started_s = {}, lane.seconds()
        with lane.in_flight():
            for route in dict.fromkeys(route for route, _ in effort.jobs):
                known = [
                    results.landmarks(one, route) if results.is_located(one, route) else None for one in batch.names
                ]
                routes[route] = answer_route(
                    batch.studies,
                    known,
                    self._loaded(schedule.localisers(route, effort.all_folds), lane),
                    self._loaded([grader for its_route, grader in effort.jobs if its_route == route], lane),
                    self._expectation,
                    self.device,
                    self._clock.record,
                    effort.tta,
                    lane.executor,
                    lane.seconds,
                    self._reliability[route],
                )
        self._clock.record_studies(batch.names, lane.seconds() - started_s)
        return BatchAnswers(batch, effort, routes)

    def _loaded(self, names: Collection[str], lane: Lane) -> list[LoadedMember]:
        return [replace(self.members[name], turn=lane.forward) for name in names if name in self.members]


def batches_in_flight(device: torch.device) -> int:
    """Batches that a device works on at a time: one where a single core has no time beside the forwards."""
    return 1 if device.type == "cpu" and os.cpu_count() == 1 else BATCHES_IN_FLIGHT
