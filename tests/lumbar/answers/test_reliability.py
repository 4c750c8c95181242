"""Reliability of landmarks: what it is made of, and that it separates right from wrong ones better than confidence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from kernels.lumbar.answers.locate import Located
from kernels.lumbar.answers.reliability import LEAST, evidence, logit, rated
from kernels.lumbar.labels import LEVELS
from kernels.lumbar.manifest import Reliability
from training.evaluation.domain import fit_reliability

CANAL = [f"spinal_canal_stenosis_{level}" for level in LEVELS]
LEFT = "left_subarticular_stenosis_l1_l2"


def located(confidences: list[float], guessed: tuple[str, ...] = ()) -> Located:
    found = dict(zip(CANAL, confidences, strict=True)) | {LEFT: 0.9}
    found |= dict.fromkeys(guessed, 0.0)
    return Located({row: np.zeros(3) for row in found}, found, set(guessed))


def test_evidence_is_its_own_that_of_its_condition_and_the_imputed_share():
    # No localiser found any foramen, as without Sagittal T1: that says nothing of the others.
    one = located([0.9, 0.8, 0.7, 0.6, 0.5], guessed=(CANAL[4], "left_neural_foraminal_narrowing_l1_l2"))
    found = evidence(one)
    assert set(found) == {*CANAL[:4], LEFT}
    assert found[CANAL[0]] == pytest.approx((logit(0.9), logit(0.6), 1 / 6))
    assert found[LEFT] == pytest.approx((logit(0.9), logit(0.9), 1 / 6))
    assert logit(0.0) == logit(LEAST) == pytest.approx(-logit(1.0))


def test_imputed_landmarks_keep_nothing_and_others_get_a_probability():
    one = located([0.9, 0.8, 0.7, 0.6, 0.5], guessed=(CANAL[4],))
    found = rated(one, Reliability(own=1.0, together=0.5, imputed=-10.0, offset=0.3))
    assert found[CANAL[4]] == 0.0 and list(found) == list(one.confidence)
    odds = logit(0.9) + 0.5 * logit(0.6) - 10 / 6 + 0.3
    assert found[CANAL[0]] == pytest.approx(1 / (1 + math.exp(-odds)))
    assert one.confidence[CANAL[0]] == 0.9  # what it is made of is not changed


def test_a_study_in_which_a_localiser_is_lost_is_told_by_all_of_its_landmarks():
    random = np.random.default_rng(0)
    known, right, own = [], [], []
    for _ in range(80):
        is_lost = random.random() < 0.3
        confidences = list(np.clip(random.normal(0.55 if is_lost else 0.75, 0.15, 5), 0.05, 0.95))
        guessed = (CANAL[int(random.integers(5))],) if random.random() < (0.6 if is_lost else 0.1) else ()
        study = located(confidences, guessed)
        for row, values in evidence(study).items():
            if row in CANAL:
                known.append(values)
                own.append(study.confidence[row])
                right.append(bool(random.random() < (0.2 if is_lost else 0.95)))
    first, rest = slice(0, len(known) // 2), slice(len(known) // 2, None)
    found = fit_reliability(np.array(known[first]), np.array(right[first]))
    assert found is not None and found.together > 0 > found.imputed
    weights = np.array([found.own, found.together, found.imputed])
    before, after = roc_auc_score(right[rest], own[rest]), roc_auc_score(right[rest], np.array(known[rest]) @ weights)
    assert after > before + 0.05 and after > 0.8
    assert fit_reliability(np.array(known[:19]), np.array(right[:19])) is None
