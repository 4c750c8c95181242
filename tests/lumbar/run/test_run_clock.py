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
    hands = Hands()
    clock = Clock(1000, hands)
    hands.time_s = 400
    assert clock.left_s() == 600
    assert clock.available_s() == pytest.approx(600 * (1 - RESERVE) - FINISH_S)


def test_seconds_are_those_of_one_study_in_one_pass():
    clock = Clock(1000, Hands())
    assert clock.seconds("a") is None and clock.mean_s("a") == 0
    clock.record("a", 12.0, studies=3, passes=2)
    assert clock.seconds("a") == clock.mean_s("a") == 2
    clock.record("a", 0.0, studies=3)
    assert clock.mean_s("a") == 1 and clock.totals_s() == {"a": 12.0}


def test_seconds_of_readers_and_devices_add_up_for_each_study():
    clock = Clock(1000, Hands())
    assert clock.study_seconds() == {}
    clock.record_studies(["7", "8"], 3.0)
    clock.record_studies(["7"], 1.0)
    assert clock.study_seconds() == {"7": 2.5, "8": 1.5}


def test_what_slows_down_is_noticed_and_a_good_moment_is_not_believed():
    clock = Clock(1000, Hands())
    for _ in range(100):
        clock.record("read", 1.0)
    for _ in range(5):
        clock.record("read", 20.0)
    slowed = clock.seconds("read")
    assert slowed > 10 > clock.mean_s("read")
    for _ in range(20):
        clock.record("read", 0.1)
    assert clock.seconds("read") == clock.mean_s("read")
