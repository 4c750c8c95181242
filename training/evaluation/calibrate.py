"""Calibration of localisers' confidence on held-out studies (Platt scaling)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from kernels.lumbar.answers.localiser_answers import LocaliserAnswer
from kernels.lumbar.answers.locate import Located
from kernels.lumbar.labels import group_of
from kernels.lumbar.manifest import Calibration
from training.evaluation.landmark_errors import across_slices_mm, in_plane_mm
from training.recipe_schema.schema import MemberRecipe
from training.runs import RunFolder

RIGHT_MM = 5.0
# The next slice still shows the landmark, and crops contain the neighbouring slices.
RIGHT_ACROSS_MM = 8.0
LEAST_POINTS = 20


def calibrate(
    folder: RunFolder,
    localisers: Sequence[MemberRecipe],
    fold: int,
    located: Mapping[str, Located],
    truth: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Fit each localiser's calibration on held-out studies and write it into its artefact.json."""
    for localiser in localisers:
        confidences, right = [], []
        for study, found in located.items():
            for row, answer in found.by_member.get(localiser.name_in(fold), {}).items():
                if row in truth.get(study, {}):
                    confidences.append(answer.confidence)
                    right.append(is_right(answer, truth[study][row], row, localiser.member.answers))
        calibration = fit_calibration(np.array(confidences), np.array(right))
        folder.update_artefact(localiser.member.name, fold, calibration=calibration)


def is_right(answer: LocaliserAnswer, truth: np.ndarray, row: str, answers: str) -> bool:
    """Whether a predicted point lies within RIGHT_MM of the annotated one; for `slices`, whether its slice does."""
    group = group_of(row)
    if answer.normal is None:
        across_mm = across_slices_mm(answer.point, truth, group)
    else:  # an oblique slice, whose middle may lie far above or below the landmark
        across_mm = abs(float((answer.point - truth) @ answer.normal))
    if answers == "slices":
        return across_mm <= RIGHT_MM
    return in_plane_mm(answer.point, truth, group) <= RIGHT_MM and across_mm <= RIGHT_ACROSS_MM


def fit_calibration(confidences: np.ndarray, right: np.ndarray) -> Calibration | None:
    """Calibration from confidences (n,) and whether they were right (n,); None with fewer than LEAST_POINTS."""
    if len(confidences) < LEAST_POINTS:
        return None
    inner = np.clip(confidences, 1e-4, 1 - 1e-4)
    logits = np.log(inner / (1 - inner))
    # Platt's prior: one more right and one more wrong point at the mean, so that both classes exist.
    logits = np.append(logits, [logits.mean()] * 2)
    labels = np.append(right.astype(int), [0, 1])
    model = LogisticRegression(C=1.0).fit(logits[:, None], labels)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope < 0:  # more confident where it is wrong: use the share of right ones alone
        share = labels.mean()
        slope, offset = 0.0, float(np.log(share / (1 - share)))
    return Calibration(slope=slope, offset=offset)
