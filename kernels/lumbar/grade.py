"""Logits of the three severities from the graders, which look where the landmarks are."""

from __future__ import annotations

import numpy as np
import torch

from .devices import check_alive
from .feed import Scene
from .labels import row_of
from .loaded import LoadedMember, first_line
from .passes import passes
from .problems import Problem


def grade(scene: Scene, grader: LoadedMember, tta: bool = True) -> list[dict[str, np.ndarray]]:
    """For each study of a scene: row name → (3,) float64 logits, for every row of which the grader sees something.

    A grader that fails or answers what is not finite is a Problem of the study, and answers nothing for these rows.
    """
    member, studies = grader.member, scene.studies
    try:
        feed = scene.feed(member)
    except RuntimeError as error:  # most likely there is no memory for so many studies
        return _one_by_one(scene, grader, tta, error)
    looking = {number for (number, _), seen in zip(feed.places, feed.seen, strict=True) if seen}
    for number, study in enumerate(studies):
        if number not in looking:
            study.problems.append(
                Problem(study.study_id, member.name, "nothing-to-look-at", "none of its views exists")
            )
    answers: list[dict[str, np.ndarray]] = [{} for _ in studies]
    if not looking:
        return answers
    try:
        logits = torch.stack(passes(grader, feed, tta)).mean(0).double().numpy()
    except RuntimeError as error:  # what torch raises in a forward pass, out-of-memory included
        return _one_by_one(scene, grader, tta, error)
    for (number, unit), seen, answer in zip(feed.places, feed.seen, logits, strict=True):
        for target, row_logits in zip(member.targets, answer, strict=True) if seen else ():
            if np.isfinite(row_logits).all():
                answers[number][row_of(target, unit)] = row_logits
            else:
                study = studies[number]
                detail = f"the answer for {row_of(target, unit)} is not finite, and is left out"
                study.problems.append(Problem(study.study_id, member.name, "not-finite", detail))
    return answers


def _one_by_one(scene: Scene, grader: LoadedMember, tta: bool, error: RuntimeError) -> list[dict[str, np.ndarray]]:
    """The fault of one study shall not cost the others.  Raises DeviceLost."""
    if len(scene.studies) > 1:
        return [grade(scene.of_one(number), grader, tta)[0] for number in range(len(scene.studies))]
    check_alive(scene.device)
    study = scene.studies[0]
    study.problems.append(Problem(study.study_id, grader.member.name, "grader-failed", first_line(error)))
    return [{}]
