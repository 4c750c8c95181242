"""Points of one localiser in patient mm, and the merged point of several localisers for one landmark."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..dicom.geometry import between, lift_points
from ..dicom.study import Study
from ..inputs.member_inputs import InputCache, MemberInputs
from ..labels import row_of
from ..manifest import Calibration
from ..networks.loading import LoadedMember
from ..networks.tta import run_member
from ..problems import Problem
from ..specs import Member

# Points farther apart are different places: half the distance of two discs.
AGREEMENT_MM = 15.0
# Points farther outside than this share of the image are failures, not landmarks just beyond its border.
OUTSIDE = 0.25
SMALLEST = 1e-6


@dataclass(frozen=True)
class LocaliserAnswer:
    """A point (3,) in patient mm, its confidence (0–1), and the normal (3,) of its slice."""

    point: np.ndarray
    confidence: float
    normal: np.ndarray | None = None


def merge(answers: Sequence[LocaliserAnswer]) -> LocaliserAnswer:
    """One point from several for the same landmark: the confidence-weighted mean of the largest consensus set.

    The consensus set is the neighbourhood, within AGREEMENT_MM, with the largest sum of confidences.  Points outside of
    it are left out and lower the confidence, as the mean of two neighbouring discs is neither.
    """
    points = np.stack([answer.point for answer in answers])
    weights = np.array([answer.confidence for answer in answers]) + SMALLEST
    near = np.linalg.norm(points[:, None] - points[None], axis=2) <= AGREEMENT_MM  # (n, n)
    support = near @ weights
    # All of equally supported places: neither the order of the answers nor left and right decides.
    chosen = near[support >= support.max() - SMALLEST].any(0)
    shares = weights[chosen] / weights[chosen].sum()
    confidence = float((weights[chosen] - SMALLEST).sum() / len(answers))
    surest = answers[int((chosen * weights).argmax())]
    return LocaliserAnswer((points[chosen] * shares[:, None]).sum(0), min(max(confidence, 0.0), 1.0), surest.normal)


def calibrated(confidence: float, calibration: Calibration | None) -> float:
    """Probability that a point is right, by Platt scaling of its confidence; unchanged without a calibration."""
    if calibration is None or confidence <= 0:
        return confidence
    inner = min(max(confidence, 1e-4), 1 - 1e-4)
    logit = math.log(inner / (1 - inner))
    return 1 / (1 + math.exp(-(calibration.slope * logit + calibration.offset)))


def answers_of(
    cache: InputCache, localiser: LoadedMember, confidence: Sequence[Mapping[str, float]], tta: bool
) -> list[dict[str, LocaliserAnswer]]:
    """For each study of a batch: row → answer of every target that a localiser finds.

    Failures are Problems of the study.  `confidence`: of the known landmarks of each study, by row; a localiser that
    refines a landmark has its confidence multiplied by that of the starting point.
    """
    found: list[dict[str, LocaliserAnswer]] = [{} for _ in cache.studies]
    for output in run_member(cache, localiser, tta):
        passes = [points.numpy() for points in output.passes]
        for place, number in enumerate(output.numbers):
            study, its_confidence = cache.studies[number], confidence[number]
            found[number] = _of_study(place, study, output.inputs, passes, localiser, its_confidence)
    return found


def _of_study(
    number: int,
    study: Study,
    inputs: MemberInputs,
    passes: Sequence[np.ndarray],
    localiser: LoadedMember,
    confidence: Mapping[str, float],
) -> dict[str, LocaliserAnswer]:
    """Row → answer for one study, merged over all passes (rows, K, 4)."""
    member = localiser.member
    found: dict[str, list[LocaliserAnswer]] = {}
    wrong: Counter[str] = Counter()
    for points in passes:
        for (its_study, unit), views, places in zip(inputs.places, inputs.views, points, strict=True):
            if its_study != number or views[0] is None:
                continue
            starts = {row for request in member.inputs for row in request.landmarks(unit)}
            lifted = lift_points(views[0].planes, places[:, :3])  # (K, 3) mm
            for target, place, point in zip(member.targets, places, lifted, strict=True):
                if kind := _wrong(place, member):
                    wrong[kind] += 1
                    continue
                row = row_of(target, unit)
                start = confidence.get(row, 1.0) if row in starts else 1.0
                chance = calibrated(float(np.clip(place[3], 0, 1)), localiser.artefact.calibration) * start
                normal = between(views[0].planes, float(place[0])).normal
                found.setdefault(row, []).append(LocaliserAnswer(point, chance, normal))
    for kind, count in wrong.items():
        study.problems.append(Problem(study.study_id, member.name, kind, f"{count} points left out"))
    return {row: merge(answers) for row, answers in found.items()}


def _wrong(where: np.ndarray, member: Member) -> str:
    """The kind of Problem with a (slice, row, column, confidence); empty where it is usable."""
    if not np.isfinite(where).all():
        return "not-finite"
    request = member.inputs[0]
    sizes = np.array([request.slices.count, request.size_px, request.size_px])
    inside = (where[:3] >= -0.5 - OUTSIDE * sizes) & (where[:3] <= sizes * (1 + OUTSIDE) - 0.5)
    return "" if inside.all() else "outside-the-image"
