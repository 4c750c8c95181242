"""One study through the whole ensemble: locate, look, grade, combine.  What training validates with.

The kernel does the same with many studies at once, member by member (rounds.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kernels.lumbar.answers.ensemble import combine, multipliers_of, shares_of
from kernels.lumbar.answers.locate import Located
from kernels.lumbar.answers.spine_shape import Expectation
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.inputs.member_inputs import InputCache
from kernels.lumbar.manifest import Manifest, Route
from kernels.lumbar.networks.loading import LoadedMember, load_member
from kernels.lumbar.networks.weights import WeightsError
from kernels.lumbar.problems import Problem
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.device_worker import timed_grade, timed_locate


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

    def predict(self, study: Study, budget: Clock, landmarks: Mapping[str, np.ndarray] | None = None) -> Prediction:
        """Grade one study.  `landmarks` (row name → mm) stand in for the localisers, where the truth is known."""
        weighted: list[tuple[Mapping[str, float], Mapping[str, np.ndarray]]] = []
        answers: dict[str, dict[str, np.ndarray]] = {}
        located: dict[str, Located] = {}
        for route in self.manifest.routes:
            found = located[route.name] = self._locate(study, route, budget, landmarks)
            scene = InputCache([study], [found.points], self.device)
            for part in route.graders:
                grader = self.members.get(part.name)
                if grader is None:
                    continue
                answers[part.name] = timed_grade(scene, grader, True, budget)[0]
                weighted.append((shares_of(route, part), answers[part.name]))
        manifest = self.manifest
        rows, fallen = combine(weighted, manifest.priors, manifest.average, multipliers_of(manifest))
        return Prediction(study.study_id, rows, fallen, located, answers, study.problems)

    def _locate(self, study: Study, route: Route, budget: Clock, landmarks: Mapping[str, np.ndarray] | None) -> Located:
        if landmarks is not None:
            return Located(dict(landmarks), dict.fromkeys(landmarks, 1.0))
        localisers = [self.members[name] for name in route.localisers if name in self.members]
        return timed_locate([study], localisers, self.expectation, True, self.device, budget)[0]
