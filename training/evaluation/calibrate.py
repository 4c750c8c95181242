"""How often a localiser is right when it says how sure it is, fitted on studies that it never saw (Platt scaling)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from kernels.lumbar.answers.localiser_answers import LocaliserAnswer
from kernels.lumbar.answers.locate import Located
from kernels.lumbar.labels import group_of
from kernels.lumbar.manifest import Artefact, Calibration
from kernels.lumbar.run.submission import replace_json
from training.evaluation.landmark_errors import across_slices_mm, in_plane_mm
from training.recipe.schema import MemberRecipe
from training.runs import RunFolder

RIGHT_MM = 5.0
# A slice that is one off still shows the landmark, and the crop takes its neighbours too.
RIGHT_ACROSS_MM = 8.0
LEAST_POINTS = 20


def calibrate(
    folder: RunFolder,
    localisers: Sequence[MemberRecipe],
    fold: int,
    located: Mapping[str, Located],
    truth: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Write into each localiser's artefact.json what its confidence is worth, from held-out studies."""
    for localiser in localisers:
        path = folder.job(localiser.member.name, fold) / "artefact.json"
        artefact = Artefact.model_validate_json(path.read_text())
        said, right = [], []
        for study, found in located.items():
            for row, answer in found.by_member.get(artefact.member.name, {}).items():
                if row in truth.get(study, {}):
                    said.append(answer.confidence)
                    right.append(is_right(answer, truth[study][row], row, artefact.member.answers))
        fitted = artefact.model_copy(update={"calibration": fit_calibration(np.array(said), np.array(right))})
        replace_json(path, fitted.model_dump(mode="json"))


def is_right(answer: LocaliserAnswer, truth: np.ndarray, row: str, answers: str) -> bool:
    """Whether a point lies near enough to the annotated one to be called found; of slices, whether the slice does."""
    group = group_of(row)
    if answer.normal is None:
        across_mm = across_slices_mm(answer.point, truth, group)
    else:  # of an oblique slice, whose middle may lie far above or below the landmark that it shows
        across_mm = abs(float((answer.point - truth) @ answer.normal))
    if answers == "slices":
        return across_mm <= RIGHT_MM
    return in_plane_mm(answer.point, truth, group) <= RIGHT_MM and across_mm <= RIGHT_ACROSS_MM


def fit_calibration(said: np.ndarray, right: np.ndarray) -> Calibration | None:
    """The calibration of confidences (n,) that were right (n,) or not; None with too few points to tell."""
    if len(said) < LEAST_POINTS:
        return None
    inner = np.clip(said, 1e-4, 1 - 1e-4)
    logits = np.log(inner / (1 - inner))
    # Platt's prior: a right and a wrong one more, halfway, so that neither can be absent.
    logits = np.append(logits, [logits.mean()] * 2)
    labels = np.append(right.astype(int), [0, 1])
    model = LogisticRegression(C=1.0).fit(logits[:, None], labels)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope < 0:  # surer where it is wrong: its word is worth nothing, the share of right ones is
        share = labels.mean()
        slope, offset = 0.0, float(np.log(share / (1 - share)))
    return Calibration(slope=slope, offset=offset)
