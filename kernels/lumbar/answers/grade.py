"""Logits of the three severities from the graders, which look where the landmarks are."""

from __future__ import annotations

import numpy as np
import torch

from ..inputs.member_inputs import InputCache
from ..labels import row_of
from ..networks.loading import LoadedMember
from ..networks.tta import look
from ..problems import Problem


def grade(scene: InputCache, grader: LoadedMember, tta: bool = True) -> list[dict[str, np.ndarray]]:
    """For each study of a scene: row name → (3,) float64 logits, for every row of which the grader sees something.

    A grader that fails or answers what is not finite is a Problem of the study, and answers nothing for these rows.
    """
    member, studies = grader.member, scene.studies
    answers: list[dict[str, np.ndarray]] = [{} for _ in studies]
    for one in look(scene, grader, tta):
        logits = torch.stack(one.said).mean(0).double().numpy()
        for (place, unit), seen, answer in zip(one.feed.places, one.feed.seen, logits, strict=True):
            number = one.numbers[place]
            for target, row_logits in zip(member.targets, answer, strict=True) if seen else ():
                if np.isfinite(row_logits).all():
                    answers[number][row_of(target, unit)] = row_logits
                else:
                    study = studies[number]
                    detail = f"the answer for {row_of(target, unit)} is not finite, and is left out"
                    study.problems.append(Problem(study.study_id, member.name, "not-finite", detail))
    return answers
