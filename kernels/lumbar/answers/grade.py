"""Logits of the three severities from one grader, whose views are cut around the landmarks."""

from __future__ import annotations

import numpy as np
import torch

from ..inputs.member_inputs import InputCache
from ..labels import row_of
from ..networks.loading import LoadedMember
from ..networks.tta import run_member
from ..problems import Problem


def grade(cache: InputCache, grader: LoadedMember, tta: bool = True) -> list[dict[str, np.ndarray]]:
    """For each study of a batch: row name → (3,) float64 logits, of every unit for which a view exists.

    A failing grader or a logit that is not finite is a Problem of the study; these rows get no answer.
    """
    member, studies = grader.member, cache.studies
    answers: list[dict[str, np.ndarray]] = [{} for _ in studies]
    for output in run_member(cache, grader, tta):
        logits = torch.stack(output.passes).mean(0).double().numpy()  # (rows, K, 3)
        for (place, unit), seen, answer in zip(output.inputs.places, output.inputs.seen, logits, strict=True):
            number = output.numbers[place]
            for target, row_logits in zip(member.targets, answer, strict=True) if seen else ():
                if np.isfinite(row_logits).all():
                    answers[number][row_of(target, unit)] = row_logits
                else:
                    study = studies[number]
                    detail = f"the answer for {row_of(target, unit)} is not finite, and is left out"
                    study.problems.append(Problem(study.study_id, member.name, "not-finite", detail))
    return answers
