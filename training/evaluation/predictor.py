"""One study through the whole ensemble: locate, look, grade, combine.  What training validates with.

The kernel does the same with many studies at once, member by member (rounds.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kernels.lumbar.run.clock import Budget
from kernels.lumbar.answers.ensemble import combine
from kernels.lumbar.inputs.member_inputs import Scene
from kernels.lumbar.answers.grade import grade
from kernels.lumbar.networks.loading import LoadedMember, load_member
from kernels.lumbar.answers.locate import Located, locate
from kernels.lumbar.manifest import GraderWeight, Manifest, Route
from kernels.lumbar.problems import Problem
from kernels.lumbar.answers.spine_shape import Expectation
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.networks.weights import WeightsError


@dataclass
class Prediction:
    """What is known of one study."""

    study_id: str
    rows: np.ndarray
    """(25, 3) float64 probabilities in the order of labels.ROWS."""
    fallen: list[str]
    """Rows that kept the prior."""
    located: dict[str, Located]
    """By route."""
    answers: dict[str, dict[str, np.ndarray]]
    """Logits (3,) by row, of each grader of the last route that used it."""
    problems: list[Problem]


class Predictor:
    """The members of a manifest, loaded once."""

    def __init__(self, manifest: Manifest, folder: Path, device: torch.device) -> None:
        self.manifest, self.device = manifest, device
        self.expectation = None if manifest.shape is None else Expectation(manifest.shape)
        self.members: dict[str, LoadedMember] = {}
        self.problems: list[Problem] = []
        for artefact in manifest.artefacts:
            try:
                self.members[artefact.member.name] = load_member(folder, artefact, device)
            except WeightsError as error:
                self.problems.append(Problem("", artefact.member.name, "member-unusable", str(error)))

    def predict(self, study: Study, budget: Budget, landmarks: Mapping[str, np.ndarray] | None = None) -> Prediction:
        """Grade one study.  `landmarks` (row name → mm) stand in for the localisers, where the truth is known."""
        weighted: list[tuple[Mapping[str, float], Mapping[str, np.ndarray]]] = []
        answers: dict[str, dict[str, np.ndarray]] = {}
        located: dict[str, Located] = {}
        for route in self.manifest.routes:
            found = located[route.name] = self._locate(study, route, budget, landmarks)
            scene = Scene([study], [found.points], self.device)
            for part in route.graders:
                grader = self.members.get(part.name)
                if grader is None:
                    continue
                answers[part.name] = timed_grade(scene, grader, True, budget)[0]
                weighted.append((shares_of(route, part), answers[part.name]))
        manifest = self.manifest
        rows, fallen = combine(weighted, manifest.priors, manifest.average, multipliers_of(manifest))
        return Prediction(study.study_id, rows, fallen, located, answers, study.problems)

    def _locate(
        self, study: Study, route: Route, budget: Budget, landmarks: Mapping[str, np.ndarray] | None
    ) -> Located:
        if landmarks is not None:
            return Located(dict(landmarks), dict.fromkeys(landmarks, 1.0))
        localisers = [self.members[name] for name in route.localisers if name in self.members]
        return timed_locate([study], localisers, self.expectation, True, self.device, budget)[0]


def shares_of(route: Route, part: GraderWeight) -> dict[str, float]:
    """A grader's weight by condition group, in the whole ensemble."""
    return {group: share * route.weight for group, share in part.weight.items()}


def multipliers_of(manifest: Manifest) -> dict[str, tuple[float, float, float]]:
    """By condition group, under plain names."""
    return {str(group): factors for group, factors in manifest.multipliers.items()}


def timed_grade(scene: Scene, grader: LoadedMember, tta: bool, budget: Budget) -> list[dict[str, np.ndarray]]:
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
    budget: Budget,
    helper: Executor | None = None,
) -> list[Located]:
    """locate.locate, its seconds shared among the localisers, under their names."""
    started = time.monotonic()
    found = locate(studies, localisers, expectation, tta, device, helper)
    share = (time.monotonic() - started) / max(len(localisers), 1)
    for localiser in localisers:
        budget.record(localiser.member.name, share, len(studies), localiser.member.passes if tta else 1)
    return found
