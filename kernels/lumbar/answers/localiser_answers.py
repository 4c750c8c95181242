"""What one localiser says of one study, in patient mm; and what several that speak of one landmark say together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..dicom.geometry import between
from ..dicom.study import Study
from ..inputs.member_inputs import InputCache, MemberInputs
from ..inputs.views import lift
from ..labels import row_of
from ..manifest import Calibration
from ..networks.loading import LoadedMember
from ..networks.tta import look
from ..problems import Problem
from ..specs import Member

# Answers farther apart speak of different places: half the distance of two discs.
AGREEMENT_MM = 15.0
# A point this share of the image beyond its border is an answer gone wrong, not a landmark just outside.
OUTSIDE = 0.25
SMALLEST = 1e-6


@dataclass(frozen=True)
class LocaliserAnswer:
    """A point (3,) in patient mm, how sure its localiser is of it (0–1), and the normal (3,) of its slice."""

    point: np.ndarray
    confidence: float
    normal: np.ndarray | None = None


def merge(answers: Sequence[LocaliserAnswer]) -> LocaliserAnswer:
    """One answer from several to the same landmark: the mean, weighted by confidence, of the largest agreement.

    Those farther than AGREEMENT_MM from the answer with the most confident company around it are left out, and lower
    the confidence: the mean of two neighbouring discs is neither.
    """
    points = np.stack([answer.point for answer in answers])
    weights = np.array([answer.confidence for answer in answers]) + SMALLEST
    near = np.linalg.norm(points[:, None] - points[None], axis=2) <= AGREEMENT_MM
    support = near @ weights
    # Of equally supported places all: no order of answers decides, nor does left or right.
    chosen = near[support >= support.max() - SMALLEST].any(0)
    shares = weights[chosen] / weights[chosen].sum()
    confidence = float((weights[chosen] - SMALLEST).sum() / len(answers))
    surest = answers[int((chosen * weights).argmax())]
    return LocaliserAnswer((points[chosen] * shares[:, None]).sum(0), min(max(confidence, 0.0), 1.0), surest.normal)


def calibrated(confidence: float, calibration: Calibration | None) -> float:
    """The chance that a point is right, from what its localiser says; unchanged without a calibration."""
    if calibration is None or confidence <= 0:
        return confidence
    inner = min(max(confidence, 1e-4), 1 - 1e-4)
    logit = math.log(inner / (1 - inner))
    return 1 / (1 + math.exp(-(calibration.slope * logit + calibration.offset)))


def answers_of(
    scene: InputCache, localiser: LoadedMember, confidence: Sequence[Mapping[str, float]], tta: bool
) -> list[dict[str, LocaliserAnswer]]:
    """For each study of a scene: row → answer of every target that a localiser finds.

    What goes wrong is a Problem of the study.  `confidence`: of the landmarks of each study, by row; a localiser that
    starts from the landmark that it answers is no surer of it than whoever found that.
    """
    found: list[dict[str, LocaliserAnswer]] = [{} for _ in scene.studies]
    for one in look(scene, localiser, tta):
        said = [points.numpy() for points in one.said]
        for place, number in enumerate(one.numbers):
            study, its_confidence = scene.studies[number], confidence[number]
            found[number] = _of_study(place, study, one.feed, said, localiser, its_confidence)
    return found


def _of_study(
    number: int,
    study: Study,
    feed: MemberInputs,
    said: Sequence[np.ndarray],
    localiser: LoadedMember,
    confidence: Mapping[str, float],
) -> dict[str, LocaliserAnswer]:
    """Row → answer for one study, from all passes."""
    member = localiser.member
    found: dict[str, list[LocaliserAnswer]] = {}
    wrong: Counter[str] = Counter()
    for points in said:
        for (its_study, unit), views, places in zip(feed.places, feed.views, points, strict=True):
            if its_study != number or views[0] is None:
                continue
            starts = {row for request in member.inputs for row in request.landmarks(unit)}
            for target, place, point in zip(member.targets, places, lift(views[0], places[:, :3]), strict=True):
                if kind := _wrong(place, member):
                    wrong[kind] += 1
                    continue
                row = row_of(target, unit)
                start = confidence.get(row, 1.0) if row in starts else 1.0
                sure = calibrated(float(np.clip(place[3], 0, 1)), localiser.artefact.calibration) * start
                normal = between(views[0].planes, float(place[0])).normal
                found.setdefault(row, []).append(LocaliserAnswer(point, sure, normal))
    for kind, count in wrong.items():
        study.problems.append(Problem(study.study_id, member.name, kind, f"{count} points left out"))
    return {row: merge(answers) for row, answers in found.items()}


def _wrong(where: np.ndarray, member: Member) -> str:
    """The kind of Problem that a slice, row, column, confidence is, if it is one."""
    if not np.isfinite(where).all():
        return "not-finite"
    request = member.inputs[0]
    sizes = np.array([request.slices.count, request.size_px, request.size_px])
    inside = (where[:3] >= -0.5 - OUTSIDE * sizes) & (where[:3] <= sizes * (1 + OUTSIDE) - 0.5)
    return "" if inside.all() else "outside-the-image"
