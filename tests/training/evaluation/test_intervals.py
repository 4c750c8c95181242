"""Bootstrap intervals over studies, and the score's rule of the mean."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from kernels.lumbar.labels import MIRROR, ROWS
from training.data.tables import ROW_GROUPS
from training.evaluation.intervals import FIGURES, difference, differences, intervals
from training.evaluation.metric import group_losses, losses, pooled, with_mean


def case(studies: int, seed: int, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions that know something of them."""
    random = np.random.default_rng(seed)
    labels = random.choice([0, 1, 2, -100], (studies, len(ROWS)), p=(0.65, 0.2, 0.1, 0.05))
    return labels, predictions(labels, random, skill)


def predictions(labels: np.ndarray, random: np.random.Generator, skill: float) -> np.ndarray:
    logits = skill * np.eye(3)[labels.clip(0)] + random.normal(size=(*labels.shape, 3))
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("parts", "published"),
    [((0.4793, 0.2761, 0.2740, 0.5617), 0.3978), ((0.4783, 0.2745, 0.2704, 0.5603), 0.3959)],
)
def test_the_published_ensembles_follow_the_rule_of_the_mean(parts: tuple[float, ...], published: float) -> None:
    assert with_mean(np.array(parts), np.ones(4))[-1] == pytest.approx(published, abs=5e-5)


def test_the_value_is_the_pooled_score_and_lies_in_its_interval() -> None:
    labels, predicted = case(200, seed=0)
    found = intervals(labels, predicted)
    assert list(found) == list(FIGURES)
    assert [one.value for one in found.values()] == pytest.approx(astuple(pooled(labels, predicted)), abs=1e-12)
    assert all(one.low < one.value < one.high for one in found.values())
    assert found == intervals(labels, predicted)
    assert group_losses(labels, predicted).sum() == pytest.approx(found["final"].value, abs=1e-12)


def test_left_and_right_count_the_same() -> None:
    labels, predicted = case(40, seed=1)
    mirrored = pooled(labels[:, MIRROR], predicted[:, MIRROR])
    assert astuple(mirrored) == pytest.approx(astuple(pooled(labels, predicted)), abs=1e-12)
    np.testing.assert_allclose(losses(labels[:, MIRROR], predicted[:, MIRROR]).loss, losses(labels, predicted).loss)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    labels, predicted = case(20000, seed=2)
    truth = pooled(labels, predicted).final
    held = 0
    for sample in range(100):
        some = slice(sample * 200, sample * 200 + 200)
        final = intervals(labels[some], predicted[some], resamples=400)["final"]
        held += final.low <= truth <= final.high
    assert 86 <= held <= 100


def test_identical_predictions_differ_by_nothing() -> None:
    labels, predicted = case(50, seed=3)
    none = difference(labels, predicted, predicted.copy())
    assert (none.value, none.low, none.high, none.verdict) == (0, 0, 0, "noise")


def test_a_gain_has_a_verdict_only_beyond_its_interval() -> None:
    labels, weak = case(300, seed=4, skill=0.5)
    strong = predictions(labels, np.random.default_rng(5), skill=2.0)
    gain, loss = difference(labels, strong, weak), difference(labels, weak, strong)
    assert gain.verdict == "better" and gain.high < 0
    assert loss.verdict == "worse" and loss.value == pytest.approx(-gain.value)
    other = predictions(labels, np.random.default_rng(6), skill=0.5)
    noise = difference(labels, other, weak)
    assert noise.verdict == "noise" and noise.low < 0 < noise.high


def test_each_figure_differs_by_its_own() -> None:
    labels, weak = case(300, seed=4, skill=0.5)
    strong = weak.copy()
    spinal = ROW_GROUPS == 0
    strong[:, spinal] = predictions(labels, np.random.default_rng(5), skill=2.0)[:, spinal]
    found = differences(labels, strong, weak)
    assert list(found) == list(FIGURES) and found["final"] == difference(labels, strong, weak)
    assert found["spinal"].verdict == "better"
    none = found["foraminal"]
    assert (none.value, none.low, none.high, none.verdict) == (0, 0, 0, "noise")
    values = [intervals(labels, rows)["spinal"].value for rows in (strong, weak)]
    assert found["spinal"].value == pytest.approx(values[0] - values[1])


def test_pairing_makes_the_interval_narrower() -> None:
    labels, predicted = case(200, seed=7)
    near = 0.99 * predicted + 0.01 / 3
    alone, paired = intervals(labels, predicted)["final"], difference(labels, near, predicted)
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


def test_resamples_without_a_group_are_left_out_of_it_and_of_the_mean() -> None:
    labels, predicted = case(30, seed=8)
    spinal = ROW_GROUPS == 0
    labels[1:, spinal] = -100
    labels[0, spinal] = 0
    found = intervals(labels, predicted)
    assert found["spinal"].low == pytest.approx(found["spinal"].high)
    assert np.isfinite([found["final"].low, found["final"].high]).all()
    assert found["final"].low < found["final"].value < found["final"].high


def test_a_group_without_labels_is_nan_and_the_mean_is_of_the_others() -> None:
    labels, predicted = case(30, seed=9)
    labels[:, ROW_GROUPS == 0] = -100
    found = intervals(labels, predicted)
    assert np.isnan([found["spinal"].value, found["spinal"].low, found["any_severe"].high]).all()
    mean = (found["foraminal"].value + found["subarticular"].value) / 2
    assert found["final"].value == pytest.approx(mean) and found["final"].low < mean < found["final"].high


def test_without_any_label_nothing_is_told() -> None:
    labels, predicted = case(5, seed=10)
    labels[:] = -100
    assert np.isnan([pooled(labels, predicted).final, intervals(labels, predicted)["final"].low]).all()
    assert difference(labels, predicted, predicted).verdict == "noise"
