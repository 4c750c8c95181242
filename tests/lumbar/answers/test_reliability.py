"""Reliability of landmarks: what it is made of, and that it separates right from wrong ones better than confidence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from kernels.lumbar.answers.locate import Located
from kernels.lumbar.answers.reliability import LEAST, imputed_share, logit, rated
from kernels.lumbar.labels import LEVELS
from kernels.lumbar.manifest import Reliability
from training.evaluation.domain import fit_reliability

CANAL = [f"spinal_canal_stenosis_{level}" for level in LEVELS]
LEFT = "left_subarticular_stenosis_l1_l2"


def located(confidences: list[float], guessed: tuple[str, ...] = ()) -> Located:
    found = dict(zip(CANAL, confidences, strict=True)) | {LEFT: 0.9}
    found |= dict.fromkeys(guessed, 0.0)
    return Located({row: np.zeros(3) for row in found}, found, set(guessed))


FORAMEN = "left_neural_foraminal_narrowing_l1_l2"


def test_a_condition_without_any_found_landmark_says_nothing_of_the_others():
    """As without Sagittal T1, whose landmarks are all imputed."""
    assert imputed_share(located([0.9, 0.8, 0.7, 0.6, 0.5], guessed=(CANAL[4], FORAMEN))) == pytest.approx(1 / 6)
    assert imputed_share(located([0.9, 0.8, 0.7, 0.6, 0.5])) == imputed_share(Located()) == 0


def test_imputed_landmarks_keep_nothing_and_others_get_a_probability():
    one = located([0.9, 0.8, 0.7, 0.6, 1.0], guessed=(CANAL[3],))
    found = rated(one, Reliability(imputed=-6.0, offset=0.3))
    assert found[CANAL[3]] == 0.0 and list(found) == list(one.confidence)
    assert found[CANAL[0]] == pytest.approx(1 / (1 + math.exp(-(logit(0.9) - 6 / 6 + 0.3))))
    assert found[CANAL[4]] < 1 and logit(0.0) == logit(LEAST) == pytest.approx(-logit(1.0))
    assert one.confidence[CANAL[0]] == 0.9  # what it is made of is not changed


def test_a_study_in_which_a_localiser_is_lost_is_told_by_what_contradicts_the_shape():
    random = np.random.default_rng(0)
    known, right, own = [], [], []
    for _ in range(80):
        is_lost = random.random() < 0.3
        confidences = list(np.clip(random.normal(0.65 if is_lost else 0.75, 0.15, 5), 0.05, 0.95))
        guessed = tuple(row for row in CANAL if random.random() < (0.3 if is_lost else 0.03))
        study = located(confidences, guessed)
        share = imputed_share(study)
        for row in CANAL:
            if row not in guessed:
                known.append((logit(study.confidence[row]), share))
                own.append(study.confidence[row])
                right.append(bool(random.random() < (0.2 if is_lost else 0.95)))
    half = len(known) // 2
    found = fit_reliability(np.array(known[:half]), np.array(right[:half]))
    assert found is not None and found.imputed < -1
    after = [one + found.imputed * share for one, share in known[half:]]
    assert roc_auc_score(right[half:], after) > roc_auc_score(right[half:], own[half:]) + 0.05
    assert fit_reliability(np.array(known[:19]), np.array(right[:19])) is None
