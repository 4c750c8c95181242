"""All networks of a manifest on one study, by the kernel's own code: what training validates with.

The kernel itself runs the same routes in rounds, on batches of studies (kernels/lumbar/run/rounds.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kernels.lumbar.answers.ensemble import softmax
from kernels.lumbar.answers.locate import Located
from kernels.lumbar.answers.route import answer_route
from kernels.lumbar.answers.spine_shape import Expectation
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.manifest import Manifest
from kernels.lumbar.networks.loading import LoadedMember, load_member
from kernels.lumbar.networks.weights import WeightsError
from kernels.lumbar.problems import Problem
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.results import Results
from training.data.out_of_fold import Average


@dataclass
class Prediction:
    """Probabilities of one study, and what they were made of."""

    study_id: str
    rows: np.ndarray
    """(25, 3) float64 probabilities in the order of labels.ROWS."""
    fallbacks: list[str]
    """Rows that have the prior."""
    located: dict[str, Located]
    """By route."""
    answers: dict[str, dict[str, np.ndarray]]
    """Grader → row → (3,) logits; of a grader in several routes, their mean."""
    problems: list[Problem]


class Predictor:
    """The members of a manifest, loaded once, in single precision."""

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

    def predict(self, study: Study, clock: Clock, landmarks: Mapping[str, np.ndarray] | None = None) -> Prediction:
        """Grade one study.  `landmarks` (row name → patient mm) replace the localisers where they are known."""
        results = Results(self.manifest, [study.study_id])
        answers: dict[str, list[dict[str, np.ndarray]]] = {}
        located: dict[str, Located] = {}
        for route in self.manifest.routes:
            localisers = [self.members[name] for name in route.localisers if name in self.members]
            graders = [self.members[part.name] for part in route.graders if part.name in self.members]
            given = ([study], [landmarks], localisers, graders, self.expectation, self.device, clock.record)
            found = answer_route(*given, reliability=route.reliability)
            if found.located is None:
                located[route.name] = Located(dict(landmarks or {}), dict.fromkeys(landmarks or {}, 1.0))
            else:
                located[route.name] = found.located[0]
            results.add([study.study_id], route.name, found)
            for grader, (rows,) in found.logits.items():
                answers.setdefault(grader, []).append(rows)
        means = {grader: mean_of(its, self.manifest.average) for grader, its in answers.items()}
        return Prediction(study.study_id, *results.rows(study.study_id), located, means, study.problems)


def mean_of(answers: Sequence[Mapping[str, np.ndarray]], average: Average) -> dict[str, np.ndarray]:
    """Row → (3,) logits: the mean over the routes of a grader that answer the row, as the kernel averages them."""
    found: dict[str, list[np.ndarray]] = {}
    for one in answers:
        for row, logits in one.items():
            found.setdefault(row, []).append(logits)
    if average == "logits":
        return {row: its[0] if len(its) == 1 else np.mean(its, 0) for row, its in found.items()}
    return {row: its[0] if len(its) == 1 else np.log(softmax(np.stack(its)).mean(0)) for row, its in found.items()}
