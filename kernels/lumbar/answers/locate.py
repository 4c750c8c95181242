"""Landmarks in patient mm from all localisers of a route.

Localisers run in waves, in the order of their dependencies: one whose views start from landmarks runs after those that
predict these.  Answers for one landmark are merged; landmarks that the shape model rejects are dropped; missing ones
are imputed from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import torch

from ..dicom.study import Study
from ..inputs.member_inputs import CPU, InputCache
from ..labels import ROWS
from ..networks.loading import LoadedMember
from ..networks.tta import with_prefetch
from ..problems import Problem
from ..specs import waves
from .localiser_answers import LocaliserAnswer, answers_of, merge
from .spine_shape import Expectation, stack_centres

# Below this calibrated probability of being right, a landmark counts as not found.
LEAST_CONFIDENCE = 0.05


@dataclass
class Located:
    """Located landmarks of one study: row name → (3,) patient mm, and confidence (0–1)."""

    points: dict[str, np.ndarray] = field(default_factory=dict)
    confidence: dict[str, float] = field(default_factory=dict)
    guessed: set[str] = field(default_factory=set)
    """Rows imputed by the shape model, as no localiser found them."""
    by_member: dict[str, dict[str, LocaliserAnswer]] = field(default_factory=dict)
    """Member → row → its own answer, before merging."""

    def mean_confidences(self) -> dict[str, float]:
        """Member → mean of its own confidences; without those that found nothing."""
        found = {name: [one.confidence for one in answers.values()] for name, answers in self.by_member.items()}
        return {name: float(np.mean(its)) for name, its in found.items() if its}


def locate(
    studies: Sequence[Study],
    localisers: Sequence[LoadedMember],
    expectation: Expectation | None = None,
    tta: bool = True,
    device: torch.device = CPU,
    executor: Executor | None = None,
) -> list[Located]:
    """Run the localisers on a batch of studies.  A failure is a Problem of the study, and gives no answers.

    `expectation`: the shape model.  `executor`: see member_inputs.InputCache.
    """
    located = [Located() for _ in studies]
    slices: list[dict[str, list[LocaliserAnswer]]] = [{} for _ in studies]
    points: list[dict[str, list[LocaliserAnswer]]] = [{} for _ in studies]
    cache = InputCache(studies, [one.points for one in located], device, executor)
    in_turn = list(waves(localisers))
    for number, wave in enumerate(in_turn, 1):
        for localiser in with_prefetch(cache, wave):
            kept = slices if localiser.member.answers == "slices" else points
            found = answers_of(cache, localiser, [one.confidence for one in located], tta)
            for one, answers, its_kept in zip(located, found, kept, strict=True):
                one.by_member[localiser.member.name] = answers
                _keep(its_kept, answers, localiser)
        pending = {row for later in in_turn[number:] for one in later for row in one.member.answered}
        for one, study, its_slices, its_points in zip(located, studies, slices, points, strict=True):
            _merge(one, its_slices, its_points)
            _apply_shape(study, one, expectation, pending)
        cache = cache.with_landmarks([one.points for one in located])
    for one, study in zip(located, studies, strict=True):
        if one.guessed and localisers:
            detail = f"{len(one.guessed)} landmarks that no localiser found are imputed by the shape model"
            study.problems.append(Problem(study.study_id, "", "guessed-landmarks", detail))
    return located


def _keep(kept: dict[str, list[LocaliserAnswer]], answers: dict[str, LocaliserAnswer], localiser: LoadedMember) -> None:
    for row, answer in answers.items():
        if localiser.artefact.calibration is None or answer.confidence >= LEAST_CONFIDENCE:
            kept.setdefault(row, []).append(answer)


def _merge(
    located: Located, slices: dict[str, list[LocaliserAnswer]], points: dict[str, list[LocaliserAnswer]]
) -> None:
    """One point per row: merged from answers of points, else from answers of slices."""
    for row in ROWS:
        found = points.get(row) or slices.get(row)
        if found:
            merged = merge(found)
            located.points[row], located.confidence[row] = merged.point, merged.confidence


def _apply_shape(study: Study, located: Located, expectation: Expectation | None, pending: set[str]) -> None:
    """Drop landmarks the shape model rejects; impute those no remaining localiser predicts (`pending` ones)."""
    if expectation is None:
        return
    for row in located.guessed:
        del located.points[row], located.confidence[row]
    located.guessed = set()
    settled = {row: point for row, point in located.points.items() if row not in pending}
    for row in expectation.contradicted(settled, located.confidence):
        detail = f"{row}: rejected by the shape model, as an outlier of the other landmarks"
        problem = Problem(study.study_id, "", "implausible-landmark", detail)
        if problem not in study.problems:
            study.problems.append(problem)
        del located.points[row], located.confidence[row], settled[row]
    known = settled or stack_centres(study)
    if not known:
        return
    for row in ROWS:
        if row not in located.points and row not in pending and row in expectation.known:
            located.points[row], _ = expectation.of(known, row)
            located.confidence[row] = 0.0
            located.guessed.add(row)
