"""Logits of the three severities from the graders, which look where the landmarks are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .feed import ViewKey, gather, mirrored_targets, mirrored_tensors, turned_tensors
from .labels import row_of
from .problems import Problem
from .study import Study
from .views import View
from .weights import LoadedMember


def grade(
    study: Study,
    grader: LoadedMember,
    landmarks: Mapping[str, np.ndarray],
    views: dict[ViewKey, View | None],
    tta: bool = True,
) -> dict[str, np.ndarray]:
    """Row name → (3,) float64 logits, for every row of which the grader sees something.

    `views` is shared by the graders of one study and one set of landmarks.  A grader that fails or answers what is not
    finite is a Problem of the study, and answers nothing for these rows.
    """
    member = grader.member
    feed = gather(study, member, landmarks, views)
    if feed is None:
        study.problems.append(Problem(study.study_id, member.name, "nothing-to-look-at", "none of its views exists"))
        return {}
    tensors, present = feed.tensors()
    try:
        logits = torch.stack(_passes(grader, tensors, present, tta)).mean(0)
    except RuntimeError as error:  # what torch raises in a forward pass, out-of-memory included
        study.problems.append(Problem(study.study_id, member.name, "grader-failed", str(error).splitlines()[0]))
        return {}
    answers = {}
    for unit, answer in zip(feed.units, logits.double().numpy(), strict=True):
        for target, row_logits in zip(member.targets, answer, strict=True):
            if np.isfinite(row_logits).all():
                answers[row_of(target, unit)] = row_logits
            else:
                detail = f"the answer for {row_of(target, unit)} is not finite, and is left out"
                study.problems.append(Problem(study.study_id, member.name, "not-finite", detail))
    return answers


def _passes(
    grader: LoadedMember, tensors: Sequence[torch.Tensor], present: torch.Tensor, tta: bool
) -> list[torch.Tensor]:
    """Logits (B, K, 3) of the study as it is and, with TTA, as the member's augmentations show it, left as left."""
    member = grader.member
    passes = [grader(tensors, present)]
    if tta and "mirror" in member.tta:
        passes.append(grader(*mirrored_tensors(member, tensors, present))[:, mirrored_targets(member)])
    if tta and "front_to_back" in member.tta:
        passes.append(grader(turned_tensors(member, tensors), present))
    return passes
