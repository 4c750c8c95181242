"""What things take, and what time is left."""

from __future__ import annotations

import pytest

from kernels.lumbar.run.clock import FINISH_S, RESERVE, Clock


class Hands:
    def __init__(self) -> None:
        self.time_s = 0.0

    def __call__(self) -> float:
        return self.time_s


def test_a_part_of_the_time_left_is_kept_back_for_the_end():
    clock = Hands()
    budget = Clock(1000, clock)
    clock.time_s = 400
    assert budget.left_s() == 600
    assert budget.available_s() == pytest.approx(600 * (1 - RESERVE) - FINISH_S)


def test_seconds_are_those_of_one_study_in_one_pass():
    budget = Clock(1000, Hands())
    assert budget.seconds("a") is None and budget.mean_s("a") == 0
    budget.record("a", 12.0, studies=3, passes=2)
    assert budget.seconds("a") == budget.mean_s("a") == 2
    budget.record("a", 0.0, studies=3)
    assert budget.mean_s("a") == 1 and budget.totals_s() == {"a": 12.0}


def test_what_slows_down_is_noticed_and_a_good_moment_is_not_believed():
    budget = Clock(1000, Hands())
    for _ in range(100):
        budget.record("read", 1.0)
    for _ in range(5):
        budget.record("read", 20.0)
    slowed = budget.seconds("read")
    assert slowed > 10 > budget.mean_s("read")
    for _ in range(20):
        budget.record("read", 0.1)
    assert budget.seconds("read") == budget.mean_s("read")
