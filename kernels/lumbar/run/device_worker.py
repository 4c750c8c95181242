"""The networks that are in a device's memory, and what they do with a batch of studies."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..answers.grade import grade
from ..answers.locate import Located, locate
from ..answers.spine_shape import Expectation
from ..dicom.study import Study
from ..inputs.member_inputs import InputCache
from ..manifest import Manifest
from ..networks.loading import LoadedMember, is_out_of_memory, load_fastest
from ..networks.tta import in_turn
from ..networks.weights import WeightsError
from ..problems import Problem
from .clock import Clock
from .read_ahead import StudyBatch
from .results import Job, Results
from .schedule import Effort, Schedule


@dataclass
class Answered:
    """What came of a batch."""

    batch: StudyBatch
    effort: Effort
    located: dict[str, list[Located]] = field(default_factory=dict)
    """Route → one a study, of the routes that were located now."""
    answers: dict[Job, list[dict[str, np.ndarray]]] = field(default_factory=dict)
    """Job → logits by row, one mapping a study."""


class DeviceWorker:
    """The members of a manifest on one device: loaded when they are needed, let go when their work is done."""

    def __init__(self, manifest: Manifest, folder: Path, device: torch.device) -> None:
        self.device = device
        self._artefacts = {artefact.member.name: artefact for artefact in manifest.artefacts}
        self._expectation = None if manifest.shape is None else Expectation(manifest.shape)
        self._folder = folder
        self._helper = ThreadPoolExecutor(1, thread_name_prefix=f"cut-{device}")
        self.members: dict[str, LoadedMember] = {}
        self.problems: dict[str, Problem] = {}
        """Of the members that cannot be used."""
        self.precision: dict[str, str] = {}
        """Of all members that were ever loaded: half or single."""
        self.refused: list[Problem] = []
        """Of those in single precision on a GPU, and why."""
        self.silent_s = 0.0
        """Since it last began something; counted by who waits for it."""

    def keep(self, names: Collection[str]) -> None:
        """Load these, and let all others go."""
        self.members = {name: one for name, one in self.members.items() if name in names}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        for name in names:
            if name in self.members or name in self.problems:
                continue
            self.silent_s = 0.0
            try:
                one = self.members[name] = load_fastest(self._folder, self._artefacts[name], self.device)
                self.precision[name] = one.precision
                if one.refused:
                    self.refused.append(Problem("", name, "single-precision", one.refused))
            except WeightsError as error:
                if is_out_of_memory(error):
                    continue  # another device, or a round with fewer networks, may have the room
                self.problems[name] = Problem("", name, "member-unusable", str(error))

    @property
    def golden_s(self) -> dict[str, float]:
        """Seconds a row of each member in memory."""
        return {name: one.golden_s for name, one in self.members.items()}

    def work(self, batch: StudyBatch, effort: Effort, store: Results, schedule: Schedule, budget: Clock) -> Answered:
        """Do the jobs of an effort for a batch: routes that are not located yet are located first."""
        done = Answered(batch, effort)
        by_route: dict[str, list[Job]] = defaultdict(list)
        for job in effort.jobs:
            by_route[job[0]].append(job)
        for route, jobs in by_route.items():
            points = self._landmarks(route, done, store, schedule, budget)
            scene = InputCache(batch.studies, points, self.device, self._helper)
            usable = [job for job in jobs if job[1] in self.members]
            graders = in_turn(scene, [self.members[grader] for _, grader in usable])
            for job, grader in zip(usable, graders, strict=True):
                self.silent_s = 0.0
                done.answers[job] = timed_grade(scene, grader, effort.tta, budget)
        return done

    def _landmarks(
        self, route: str, done: Answered, store: Results, schedule: Schedule, budget: Clock
    ) -> list[Mapping[str, np.ndarray]]:
        studies, effort = done.batch.studies, done.effort
        known = [store.is_located(study.study_id, route) for study in studies]
        if not all(known):
            names = schedule.localisers(route, effort.all_folds)
            localisers = [self.members[name] for name in names if name in self.members]
            how = (self._expectation, effort.tta, self.device, budget, self._helper)
            done.located[route] = timed_locate(studies, localisers, *how)
        return [
            store.landmarks(study.study_id, route) if before else done.located[route][number].points
            for number, (study, before) in enumerate(zip(studies, known, strict=True))
        ]


def timed_grade(scene: InputCache, grader: LoadedMember, tta: bool, budget: Clock) -> list[dict[str, np.ndarray]]:
    """grade.grade, its seconds recorded under the member's name."""
    started = time.monotonic()
    answers = grade(scene, grader, tta)
    passes = grader.member.passes if tta else 1
    budget.record(grader.member.name, time.monotonic() - started, len(scene.studies), passes)
    return answers


def timed_locate(
    studies: Sequence[Study],
    localisers: Sequence[LoadedMember],
    expectation: Expectation | None,
    tta: bool,
    device: torch.device,
    budget: Clock,
    helper: Executor | None = None,
) -> list[Located]:
    """locate.locate, its seconds shared among the localisers, under their names."""
    started = time.monotonic()
    found = locate(studies, localisers, expectation, tta, device, helper)
    share = (time.monotonic() - started) / max(len(localisers), 1)
    for localiser in localisers:
        budget.record(localiser.member.name, share, len(studies), localiser.member.passes if tta else 1)
    return found
