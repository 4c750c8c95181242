"""One route on a batch of studies: locate the landmarks, cut the views around them, grade.

The kernel's workers and training's validation both run this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch

from ..dicom.study import Study
from ..inputs.member_inputs import InputCache
from ..manifest import Reliability
from ..networks.loading import LoadedMember
from ..networks.tta import with_prefetch
from .grade import grade
from .locate import Located, locate
from .reliability import rated
from .spine_shape import Expectation

Landmarks = Mapping[str, np.ndarray]
Record = Callable[[str, float, int, int], None]
"""Takes a member's name, its seconds, the number of studies, and the forward passes per study."""


@dataclass(frozen=True)
class RouteAnswers:
    """Landmarks and logits of one route for a batch of studies."""

    located: list[Located] | None
    """One per study; None where the landmarks of all studies were given."""
    logits: dict[str, list[dict[str, np.ndarray]]]
    """Grader → row → (3,) logits, one mapping per study."""


def answer_route(
    studies: Sequence[Study],
    landmarks: Sequence[Landmarks | None],
    localisers: Sequence[LoadedMember],
    graders: Sequence[LoadedMember],
    expectation: Expectation | None,
    device: torch.device,
    record: Record,
    tta: bool = True,
    executor: Executor | None = None,
    seconds: Callable[[], float] | None = None,
    reliability: Reliability | None = None,
) -> RouteAnswers:
    """Run localisers and graders.  `landmarks`: row → patient mm, one mapping per study; None = to be located.

    `record` is called after each timed step; localisers share the seconds of the whole localisation.  `executor`: see
    member_inputs.InputCache.  `seconds`: the clock of the steps, by default that of the wall.  `reliability`: of
    the located landmarks, whose confidence it replaces at the end.  A member that fails is a
    Problem of the study.  Raises DeviceLost.
    """
    seconds = seconds or time.monotonic
    located = None
    if any(points is None for points in landmarks):
        started = seconds()
        located = locate(studies, localisers, expectation, tta, device, executor)
        if reliability is not None:
            for found in located:
                found.confidence = rated(found, reliability)
        share_s = (seconds() - started) / max(len(localisers), 1)
        for one in localisers:
            record(one.member.name, share_s, len(studies), one.member.passes if tta else 1)
        landmarks = [found.points if known is None else known for known, found in zip(landmarks, located, strict=True)]
    cache = InputCache(studies, [points for points in landmarks if points is not None], device, executor)
    logits = {}
    for grader in with_prefetch(cache, graders):
        started = seconds()
        logits[grader.member.name] = grade(cache, grader, tta)
        record(grader.member.name, seconds() - started, len(studies), grader.member.passes if tta else 1)
    return RouteAnswers(located, logits)
