"""Scaling: what sharpened answers get back, what calibrated and few ones keep, and that the gain is honest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.lumbar.labels import MIRROR, ROWS
from tests.training.ensemble.test_ensemble_search import AVERAGES, LOGITS
from training.data.out_of_fold import PLAIN, Answers, Average, Mixture, Rule, Scaling
from training.ensemble.fit_scaling import LEAST_STUDIES, SOFTER_PENALTY, TEMPERATURE_BOUNDS, fit_scaling
from training.ensemble.search import cross_calibrated, simple_mean
from training.evaluation.intervals import Difference, differences
from training.evaluation.metric import group_losses, pooled

ONE = np.ones((1, 3))
GRID = np.arange(0.5, 3.001, 0.02)


def calibrated(studies: int, seed: int = 0, weighted: bool = True) -> Answers:
    """One member whose answers are the shares that its labels were drawn with, `weighted` as the metric weighs them."""
    random = np.random.default_rng(seed)
    # The levels of a study resemble each other, so that one severe row is a sign of others.
    lean = random.normal(size=(studies, 1, 1)) * [-1.0, 0.2, 0.8]
    logits = np.log([0.7, 0.2, 0.1]) + lean + random.normal(size=(studies, len(ROWS), 3))
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = (random.random((studies, len(ROWS), 1)) > shares.cumsum(-1)).sum(-1).clip(0, 2)
    answer = np.log(shares) + (np.log([1, 2, 4]) if weighted else 0)
    return Answers(("a/m",), tuple(map(str, range(studies))), np.arange(studies) % 5, labels, answer[None])


def sharpened(answers: Answers, factor: float) -> Answers:
    return replace(answers, logits=answers.logits * factor)


def temperatures_of(answers: Answers, rule: Rule = LOGITS) -> np.ndarray:
    return fit_scaling(answers, rule, ONE).temperatures


def loss_at(answers: Answers, multipliers: np.ndarray, temperature: float) -> np.ndarray:
    mixed = Mixture(answers, LOGITS).mix(ONE, Scaling(multipliers, np.full(3, temperature)))
    return group_losses(answers.labels, mixed)


@pytest.mark.parametrize("average", AVERAGES)
def test_calibrated_answers_keep_theirs_and_sharpened_ones_get_the_factor_back(average: Average) -> None:
    rule, known = Rule(average, LOGITS.priors), calibrated(1000)
    kept = temperatures_of(known, rule)
    np.testing.assert_allclose(kept[1:], 1, atol=0.05)
    assert 0.8 < kept[0] < 1.25  # calibrated by row, not as to whether any level is severe
    for factor in (1.5, 0.8):
        np.testing.assert_allclose(temperatures_of(sharpened(known, factor), rule), kept * factor, rtol=0.03)


def test_the_fit_is_of_the_whole_metric_with_any_severe() -> None:
    answers = sharpened(calibrated(400), 1.5)
    penalties = SOFTER_PENALTY / len(answers.studies) * np.log(GRID)[:, None] ** 2
    found = fit_scaling(answers, LOGITS, ONE)
    losses = np.array([loss_at(answers, found.multipliers, one) for one in GRID]) + penalties
    np.testing.assert_allclose(found.temperatures, GRID[losses.argmin(0)], atol=0.015)
    rows_alone = [
        pooled(answers.labels, Mixture(answers, LOGITS).mix(ONE, Scaling(found.multipliers, np.full(3, one)))).spinal
        for one in GRID
    ]
    assert abs(GRID[int(np.argmin(rows_alone))] - found.temperatures[0]) > 0.03


def test_sharp_answers_to_shuffled_labels_are_flattened_as_far_as_allowed() -> None:
    answers = sharpened(calibrated(200), 3)
    shuffled = replace(answers, labels=answers.labels[np.random.default_rng(1).permutation(200)])
    found = temperatures_of(shuffled)
    assert (found <= TEMPERATURE_BOUNDS[1] + 1e-9).all() and found[1:].min() > 2.99
    flat = temperatures_of(sharpened(calibrated(200), 0.1))
    np.testing.assert_allclose(flat, TEMPERATURE_BOUNDS[0], rtol=1e-6)


def cross_fitted_gain(answers: Answers) -> Difference:
    plain = simple_mean(answers, LOGITS)
    mixed = cross_calibrated(plain, answers, LOGITS)
    return differences(answers.labels, mixed, plain.predict(answers, LOGITS))["final"]


def test_the_cross_fitted_score_falls_where_answers_are_too_confident_and_elsewhere_moves_by_noise() -> None:
    known = [calibrated(60, seed) for seed in range(4)]
    assert all(cross_fitted_gain(sharpened(one, 2.0)).verdict == "better" for one in known)
    kept = [cross_fitted_gain(one).value for one in known]
    assert abs(np.mean(kept)) < 0.003 and max(np.abs(kept)) < 0.008


def test_too_few_studies_keep_1() -> None:
    few, enough = (sharpened(calibrated(studies), 2) for studies in (LEAST_STUDIES - 1, LEAST_STUDIES))
    assert (temperatures_of(few) == 1).all() and (temperatures_of(enough) > 1).all()
    labels = enough.labels.copy()
    labels[0, [row.startswith("spinal") for row in ROWS]] = -100
    assert (temperatures_of(replace(enough, labels=labels)) == 1).tolist() == [True, False, False]
    logits = enough.logits.copy()
    logits[:, 0, ["foraminal" in row for row in ROWS]] = np.nan
    assert (temperatures_of(replace(enough, logits=logits)) == 1).tolist() == [False, True, False]


def test_with_few_studies_temperatures_stay_nearer_to_1() -> None:
    many, few = (temperatures_of(sharpened(calibrated(studies, 3), 2)) for studies in (800, 24))
    assert np.abs(np.log(many[1:] / 2)).max() < 0.06 and (few > 1).all()


@pytest.mark.parametrize("average", AVERAGES)
def test_a_temperature_and_multipliers_are_told_from_each_other(average: Average) -> None:
    answers = sharpened(calibrated(2000, weighted=False), 1.5)
    scaling = fit_scaling(answers, Rule(average, LOGITS.priors), ONE)
    np.testing.assert_allclose(scaling.temperatures[1:], 1.5, atol=0.1)
    np.testing.assert_allclose(scaling.multipliers[1:], [[1, 2, 4]] * 2, rtol=0.15)


def test_no_group_is_worse_on_the_rows_of_the_fit_and_priors_stay() -> None:
    for seed in range(5):
        answers = calibrated(25, seed)
        logits = answers.logits.copy()
        silent = np.random.default_rng(seed).random(logits.shape[:3]) < 0.3
        logits[silent] = np.nan
        answers = replace(answers, logits=logits)
        mixture, scaling = Mixture(answers, LOGITS), fit_scaling(answers, LOGITS, ONE)
        before, after = (mixture.mix(ONE, its) for its in (PLAIN, scaling))
        assert (group_losses(answers.labels, after) <= group_losses(answers.labels, before)).all()
        assert (before[silent[0]] == after[silent[0]]).all()


def test_few_studies_soften_more_readily_than_they_sharpen() -> None:
    softer, sharper = (temperatures_of(sharpened(calibrated(24, 1), factor)) for factor in (1.5, 1 / 1.5))
    assert (np.log(softer) > -np.log(sharper)).all() and (sharper < 1).all()


def test_left_and_right_have_one_temperature() -> None:
    answers = sharpened(calibrated(60), 1.5)
    mirrored = replace(answers, labels=answers.labels[:, MIRROR], logits=answers.logits[:, :, MIRROR])
    np.testing.assert_allclose(temperatures_of(mirrored), temperatures_of(answers), rtol=1e-6)
