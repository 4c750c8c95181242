"""Landmarks in patient mm from the localisers: each answers in its own pixels, and is lifted to mm at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .feed import Feed, gather, mirrored_targets, mirrored_tensors
from .labels import UNITS, row_of
from .problems import Problem
from .specs import Member
from .study import Study
from .views import lift
from .weights import LoadedMember


@dataclass
class Located:
    """What the localisers found: row name → point in patient mm, and how sure they are (0–1)."""

    points: dict[str, np.ndarray] = field(default_factory=dict)
    confidence: dict[str, float] = field(default_factory=dict)


def locate(study: Study, localisers: Sequence[LoadedMember], tta: bool = True) -> Located:
    """Run the localisers, those that need others' landmarks after these; answers to one landmark are averaged in mm,
    weighted by confidence.  A localiser that fails is a Problem of the study, and takes part in nothing."""
    located = Located()
    waiting = list(localisers)
    while waiting:
        owed = {row for localiser in waiting for row in _answers(localiser.member)}
        ready = [one for one in waiting if not owed & set(_needs(one.member))] or waiting
        answers: dict[str, list[tuple[np.ndarray, float]]] = {}
        for localiser in ready:
            for row, point, confidence in _answer(study, localiser, located, tta):
                answers.setdefault(row, []).append((point, confidence))
        for row, found in answers.items():
            weights = np.array([confidence for _, confidence in found]) + 1e-6
            points = np.stack([point for point, _ in found])
            located.points[row] = (points * weights[:, None]).sum(0) / weights.sum()
            located.confidence[row] = float(np.mean([confidence for _, confidence in found]))
        waiting = [one for one in waiting if one not in ready]
    return located


def _answers(member: Member) -> list[str]:
    return [row_of(target, unit) for unit in UNITS[member.unit] for target in member.targets]


def _needs(member: Member) -> list[str]:
    return [row for unit in UNITS[member.unit] for request in member.inputs for row in request.landmarks(unit)]


def _answer(study: Study, localiser: LoadedMember, located: Located, tta: bool) -> list[tuple[str, np.ndarray, float]]:
    """(row, point in mm, confidence) of every target that one localiser finds in a study."""
    member = localiser.member
    feed = gather(study, member, located.points)
    if feed is None:
        study.problems.append(Problem(study.study_id, member.name, "nothing-to-look-at", "none of its views exists"))
        return []
    try:
        points = _points(localiser, feed, tta)
    except RuntimeError as error:  # what torch raises in a forward pass, out-of-memory included
        study.problems.append(Problem(study.study_id, member.name, "localiser-failed", str(error).splitlines()[0]))
        return []
    found = []
    for unit, views, answer in zip(feed.units, feed.views, points, strict=True):
        view = views[0]
        if view is None:
            continue
        in_mm = lift(view, answer[:, :3])
        for target, point, confidence in zip(member.targets, in_mm, answer[:, 3], strict=True):
            if np.isfinite(point).all() and np.isfinite(confidence):
                found.append((row_of(target, unit), point, float(np.clip(confidence, 0, 1))))
    if len(found) < sum(views[0] is not None for views in feed.views) * len(member.targets):
        study.problems.append(Problem(study.study_id, member.name, "not-finite", "a point is not finite: left out"))
    return found


def _points(localiser: LoadedMember, feed: Feed, tta: bool) -> np.ndarray:
    """(B, K, 4) slice, row, column, confidence in pixels of the first view, mean over the flips."""
    tensors, present = feed.tensors()
    points = localiser(tensors, present)
    if not (tta and "mirror" in localiser.member.tta):
        return points.numpy()
    member = localiser.member
    flipped = localiser(*mirrored_tensors(member, tensors, present))[:, mirrored_targets(member)]
    request = member.inputs[0]
    flipped = flipped.clone()
    if request.series == "axial_t2":
        flipped[..., 2] = request.size_px - 1 - flipped[..., 2]
    else:
        flipped[..., 0] = request.slices.count - 1 - flipped[..., 0]
    both = torch.stack([points, flipped])
    weight = both[..., 3:] + 1e-6
    place = (both[..., :3] * weight).sum(0) / weight.sum(0)
    return torch.cat([place, both[..., 3:].mean(0)], -1).numpy()
