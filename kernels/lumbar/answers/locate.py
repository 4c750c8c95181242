"""Landmarks in patient mm from the localisers: each answers in its own pixels, and is lifted to mm at once.

Localisers run in waves, those that need others' landmarks after these.  Answers to one landmark are averaged where they
agree; what the shape of the spine contradicts is left out; what nobody found is guessed from that shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import torch

from ..dicom.study import Study
from ..inputs.member_inputs import CPU, InputCache
from ..labels import ROWS, UNITS, row_of
from ..networks.loading import LoadedMember
from ..networks.tta import in_turn
from ..problems import Problem
from ..specs import Member
from .localiser_answers import LocaliserAnswer, answers_of, merge
from .spine_shape import Expectation, stack_centres

# A calibrated localiser that gives a point so little chance of being right has not found it.
LEAST_CONFIDENCE = 0.05


@dataclass
class Located:
    """Row name → point in patient mm, and how sure the localisers are (0–1)."""

    points: dict[str, np.ndarray] = field(default_factory=dict)
    confidence: dict[str, float] = field(default_factory=dict)
    guessed: set[str] = field(default_factory=set)
    """Rows that no localiser found: their points are where the shape of the spine expects them."""
    by_member: dict[str, dict[str, LocaliserAnswer]] = field(default_factory=dict)
    """What each localiser said, before it was held against the others."""


def locate(
    studies: Sequence[Study],
    localisers: Sequence[LoadedMember],
    expectation: Expectation | None = None,
    tta: bool = True,
    device: torch.device = CPU,
    helper: Executor | None = None,
) -> list[Located]:
    """Run the localisers on a batch of studies.  One that fails is a Problem of the study; it takes part in nothing.

    `helper`: see member_inputs.InputCache.
    """
    located = [Located() for _ in studies]
    slices: list[dict[str, list[LocaliserAnswer]]] = [{} for _ in studies]
    points: list[dict[str, list[LocaliserAnswer]]] = [{} for _ in studies]
    scene = InputCache(studies, [one.points for one in located], device, helper)
    waiting = list(localisers)
    while waiting:
        ready = _ready(waiting)
        waiting = [one for one in waiting if one not in ready]
        for localiser in in_turn(scene, ready):
            kept = slices if localiser.member.answers == "slices" else points
            found = answers_of(scene, localiser, [one.confidence for one in located], tta)
            for one, answers, its_kept in zip(located, found, kept, strict=True):
                one.by_member[localiser.member.name] = answers
                _keep(its_kept, answers, localiser)
        owed = {row for one in waiting for row in answered(one.member)}
        for one, study, its_slices, its_points in zip(located, studies, slices, points, strict=True):
            _settle(one, its_slices, its_points)
            _hold_against_shape(study, one, expectation, owed)
        scene = scene.moved([one.points for one in located])
    for one, study in zip(located, studies, strict=True):
        if one.guessed and localisers:
            detail = f"{len(one.guessed)} landmarks that nobody found lie where the shape of the spine expects them"
            study.problems.append(Problem(study.study_id, "", "guessed-landmarks", detail))
    return located


def _keep(kept: dict[str, list[LocaliserAnswer]], answers: dict[str, LocaliserAnswer], localiser: LoadedMember) -> None:
    for row, answer in answers.items():
        if localiser.artefact.calibration is None or answer.confidence >= LEAST_CONFIDENCE:
            kept.setdefault(row, []).append(answer)


def answered(member: Member) -> list[str]:
    """The rows that a localiser answers."""
    return [row_of(target, unit) for unit in UNITS[member.unit] for target in member.targets]


def needed(member: Member) -> set[str]:
    """The rows that a localiser has to know before it looks."""
    return {row for unit in UNITS[member.unit] for request in member.inputs for row in request.landmarks(unit)}


def _ready(waiting: Sequence[LoadedMember]) -> list[LoadedMember]:
    """Those that need nothing that others still have to find; all where each waits for another.

    One that starts from the landmark that it answers refines it: nobody has to wait for that, nor do refiners for each
    other.
    """
    needs = {one.member.name: needed(one.member) for one in waiting}
    owed = {row for one in waiting for row in answered(one.member) if row not in needs[one.member.name]}
    return [one for one in waiting if not owed & needs[one.member.name]] or list(waiting)


def _settle(
    located: Located, slices: dict[str, list[LocaliserAnswer]], points: dict[str, list[LocaliserAnswer]]
) -> None:
    """One point a row: from those who found the place, else from those who found only the slice."""
    for row in ROWS:
        found = points.get(row) or slices.get(row)
        if found:
            merged = merge(found)
            located.points[row], located.confidence[row] = merged.point, merged.confidence


def _hold_against_shape(study: Study, located: Located, expectation: Expectation | None, owed: set[str]) -> None:
    """Leave out what the rest contradicts, and guess what nobody has found nor is still going to look for."""
    if expectation is None:
        return
    for row in located.guessed:
        del located.points[row], located.confidence[row]
    located.guessed = set()
    settled = {row: point for row, point in located.points.items() if row not in owed}
    for row in expectation.contradicted(settled, located.confidence):
        detail = f"{row}: the other landmarks expect it elsewhere"
        problem = Problem(study.study_id, "", "implausible-landmark", detail)
        if problem not in study.problems:
            study.problems.append(problem)
        del located.points[row], located.confidence[row], settled[row]
    known = settled or stack_centres(study)
    if not known:
        return
    for row in ROWS:
        if row not in located.points and row not in owed:
            located.points[row], _ = expectation.of(known, row)
            located.confidence[row] = 0.0
            located.guessed.add(row)
