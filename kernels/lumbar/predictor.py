"""One study through the whole ensemble: locate, cut, grade, combine.  Used by the kernel and by validation."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .budget import Budget, Effort
from .dicom import read_study
from .ensemble import combine
from .feed import ViewKey
from .grade import grade
from .locate import Located, locate
from .manifest import Manifest, Route
from .problems import Problem
from .shape import Expectation
from .study import Study, gaps
from .views import View
from .weights import LoadedMember, WeightsError, load_member

# Studies decoded ahead of the models, by one thread: measured to keep the models 98 % busy.
LOOK_AHEAD = 2


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

    def __init__(self, manifest: Manifest, folder: Path, device: torch.device, *, half: bool = False) -> None:
        self.manifest = manifest
        self.expectation = None if manifest.shape is None else Expectation(manifest.shape)
        self.members: dict[str, LoadedMember] = {}
        self.problems: list[Problem] = []
        self.folds = {artefact.member.name: artefact.provenance.fold for artefact in manifest.artefacts}
        for artefact in manifest.artefacts:
            try:
                self.members[artefact.member.name] = load_member(folder, artefact, device, half)
            except WeightsError as error:
                self.problems.append(Problem("", artefact.member.name, "member-unusable", str(error)))

    def costs(self) -> list[tuple[str, int, int]]:
        """(name, fold, passes with TTA) of every loaded member, for Budget.effort."""
        return [(name, self.folds[name], one.member.passes) for name, one in self.members.items()]

    def predict(
        self,
        study: Study,
        budget: Budget,
        effort: Effort | None = None,
        landmarks: Mapping[str, np.ndarray] | None = None,
    ) -> Prediction:
        """Grade one study.  `landmarks` (row name → mm) stand in for the localisers, where the truth is known."""
        effort = effort or Effort(True, len(set(self.folds.values())))
        active = set(sorted(set(self.folds.values()))[: effort.folds])
        weighted: list[tuple[Mapping[str, float], Mapping[str, np.ndarray]]] = []
        answers: dict[str, dict[str, np.ndarray]] = {}
        located: dict[str, Located] = {}
        for route in self.manifest.routes:
            found = located[route.name] = self._locate(study, route, effort, active, budget, landmarks)
            views: dict[ViewKey, View | None] = {}
            for part in route.graders:
                grader = self.members.get(part.name)
                if grader is None or self.folds[part.name] not in active:
                    continue
                with _timed(budget, grader, effort.tta):
                    answers[part.name] = grade(study, grader, found.points, views, effort.tta)
                shares: dict[str, float] = {group: share * route.weight for group, share in part.weight.items()}
                weighted.append((shares, answers[part.name]))
        multipliers = {str(group): factors for group, factors in self.manifest.multipliers.items()}
        rows, fallen = combine(weighted, self.manifest.priors, self.manifest.average, multipliers)
        return Prediction(study.study_id, rows, fallen, located, answers, study.problems)

    def _locate(
        self,
        study: Study,
        route: Route,
        effort: Effort,
        active: set[int],
        budget: Budget,
        landmarks: Mapping[str, np.ndarray] | None,
    ) -> Located:
        if landmarks is not None:
            return Located(dict(landmarks), dict.fromkeys(landmarks, 1.0))
        localisers = [self.members[n] for n in route.localisers if n in self.members and self.folds[n] in active]
        started = time.monotonic()
        found = locate(study, localisers, self.expectation, effort.tta)
        share = (time.monotonic() - started) / max(len(localisers), 1)
        for localiser in localisers:
            budget.record(localiser.member.name, share / _passes(localiser, effort.tta))
        return found


def _passes(member: LoadedMember, tta: bool) -> int:
    return member.member.passes if tta else 1


class _timed:
    """Records the seconds of one pass of a member."""

    def __init__(self, budget: Budget, member: LoadedMember, tta: bool) -> None:
        self._budget, self._name = budget, member.member.name
        self._passes = _passes(member, tta)

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._budget.record(self._name, (time.monotonic() - self._started) / self._passes)


def read_ahead(
    images: Path, series: Mapping[str, Sequence[tuple[str, str]]], studies: Sequence[str], budget: Budget
) -> Generator[Study, None, None]:
    """The studies in order, decoded by a thread a bounded window ahead: memory stays flat in their number."""

    def read(study_id: str) -> Study:
        started = time.monotonic()
        study = _read_isolated(images / study_id, study_id, series.get(study_id, ()), read_study)
        budget.record("read", time.monotonic() - started)
        return study

    with ThreadPoolExecutor(1, thread_name_prefix="read") as executor:
        window: deque[Future[Study]] = deque()
        for study_id in studies:
            window.append(executor.submit(read, study_id))
            if len(window) > LOOK_AHEAD:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()


def _read_isolated(
    folder: Path,
    study_id: str,
    series: Sequence[tuple[str, str]],
    reader: Callable[[Path, str, Sequence[tuple[str, str]]], Study],
) -> Study:
    """A study that breaks the reader in a way nobody foresaw costs itself, not the run."""
    if not series:
        problem = Problem(study_id, "", "no-series", "the series table lists no usable series of this study")
        return Study(study_id, (), [problem])
    try:
        study = reader(folder, study_id, series)
    except Exception as error:  # noqa: BLE001 - the named, counted last resort
        return Study(study_id, (), [Problem(study_id, "", "study-unreadable", f"{type(error).__name__}: {error}")])
    study.problems += gaps(study)
    return study
