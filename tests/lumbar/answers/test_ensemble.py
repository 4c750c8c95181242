"""The weighted mean, and the prior where no grader answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.lumbar.answers.ensemble import softmax
from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.labels import GROUPS, ROWS, group_of
from tests.support.networks.combined import combined

EVERYWHERE = dict.fromkeys(GROUPS, 1.0)


def answers(value: float) -> dict[str, np.ndarray]:
    return {row: np.array([0.0, value, -value]) for row in ROWS}


def test_without_answers_every_row_is_its_prior() -> None:
    rows, fallbacks = combined([], "logits")
    assert fallbacks == list(ROWS)
    assert np.allclose(rows, [public_priors()[row] for row in ROWS])


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_weights_count_by_condition_group(average: str) -> None:
    spinal_only = {"spinal": 3.0, "foraminal": 0.0, "subarticular": 0.0}
    rows, fallbacks = combined([(EVERYWHERE, answers(1.0)), (spinal_only, answers(2.0))], average)  # type: ignore[arg-type]
    assert not fallbacks
    one, two = answers(1.0)[ROWS[0]], answers(2.0)[ROWS[0]]
    mixed = softmax(0.25 * one + 0.75 * two) if average == "logits" else 0.25 * softmax(one) + 0.75 * softmax(two)
    for row, got in zip(ROWS, rows, strict=True):
        assert np.allclose(got, mixed if group_of(row) == "spinal" else softmax(one))


def test_one_missing_answer_falls_back_alone() -> None:
    partial = answers(1.0)
    del partial[ROWS[7]]
    rows, fallbacks = combined([(EVERYWHERE, partial)], "logits")
    assert fallbacks == [ROWS[7]]
    assert np.allclose(rows[7], public_priors()[ROWS[7]])


def test_multipliers_change_what_was_averaged_and_leave_priors_alone() -> None:
    partial = answers(1.0)
    missing = next(row for row in ROWS if group_of(row) == "spinal")
    del partial[missing]
    plain, _ = combined([(EVERYWHERE, partial)], "logits")
    rows, _ = combined([(EVERYWHERE, partial)], "logits", {"spinal": (1.0, 2.0, 4.0)})
    for row, before, after in zip(ROWS, plain, rows, strict=True):
        if group_of(row) != "spinal" or row == missing:
            assert np.allclose(before, after)
        else:
            times = before * [1, 2, 4]
            assert np.allclose(after, times / times.sum())


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_a_temperature_divides_the_logits_of_the_average_and_leaves_priors_alone(average: str) -> None:
    partial = answers(1.0)
    missing = next(row for row in ROWS if group_of(row) == "spinal")
    del partial[missing]
    told = [(EVERYWHERE, partial), (EVERYWHERE, answers(2.0))]
    del told[1][1][missing]
    plain, _ = combined(told, average)  # type: ignore[arg-type]
    rows, _ = combined(told, average, None, {"spinal": 1.25})  # type: ignore[arg-type]
    for row, before, after in zip(ROWS, plain, rows, strict=True):
        if group_of(row) != "spinal" or row == missing:
            assert (before == after).all()
        else:
            np.testing.assert_allclose(after, softmax(np.log(before) / 1.25), atol=1e-12)
            assert after.max() < before.max()


def test_temperatures_come_before_multipliers() -> None:
    alone = [(EVERYWHERE, answers(1.0))]
    rows, _ = combined(alone, "logits", {"spinal": (1.0, 2.0, 4.0)}, {"spinal": 2.0})
    np.testing.assert_allclose(rows[-1], softmax(np.array([0.0, 0.5, -0.5]) + np.log([1, 2, 4])))


def test_a_temperature_of_1_changes_no_bit() -> None:
    told = [(EVERYWHERE, {row: np.random.default_rng(at).normal(0, 4, 3) for at, row in enumerate(ROWS)})]
    plain, _ = combined(told, "logits")
    assert (combined(told, "logits", None, dict.fromkeys(GROUPS, 1.0))[0] == plain).all()
    others, _ = combined(told, "logits", None, {"foraminal": 3.0})
    kept = [group_of(row) != "foraminal" for row in ROWS]
    assert (others[kept] == plain[kept]).all() and (others != plain).any()


@given(st.lists(st.floats(-700, 700), min_size=3, max_size=3))
def test_rows_are_probabilities_for_any_logits(logits: list[float]) -> None:
    rows, _ = combined([(EVERYWHERE, dict.fromkeys(ROWS, np.array(logits)))], "logits")
    assert np.isfinite(rows).all()
    assert np.abs(rows.sum(1) - 1).max() < 1e-12


@given(
    st.lists(st.floats(-700, 700), min_size=3, max_size=3),
    st.floats(0.1, 10),
    st.sampled_from(["logits", "probabilities"]),
)
def test_rows_are_probabilities_at_any_temperature(logits: list[float], temperature: float, average: str) -> None:
    told = [(EVERYWHERE, dict.fromkeys(ROWS, np.array(logits)))]
    rows, _ = combined(told, average, None, dict.fromkeys(GROUPS, temperature))  # type: ignore[arg-type]
    assert np.isfinite(rows).all()
    assert np.abs(rows.sum(1) - 1).max() < 1e-12
