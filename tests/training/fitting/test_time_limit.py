"""The clock of a training session: which epochs it lets through."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from training.fitting.time_limit import OutOfTime, TimeLimit, sigterm_flag


class Time:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def time() -> Time:
    return Time()


def test_epochs_pass_as_long_as_the_last_one_would_fit(time):
    clock = TimeLimit(100.0, time)
    clock.before_epoch(None)
    time.now_s += 87
    clock.before_epoch(10.0)  # ends as the three seconds begin that are kept back
    time.now_s += 1
    with pytest.raises(OutOfTime):
        clock.before_epoch(10.0)
    clock.before_epoch(9.0)


def test_a_new_network_is_taken_to_be_as_slow_as_the_slowest(time):
    clock = TimeLimit(100.0, time)
    clock.before_epoch(30.0)
    clock.before_epoch(5.0)
    time.now_s += 70
    with pytest.raises(OutOfTime):
        clock.before_epoch(None)
    clock.before_epoch(5.0)


def test_every_session_gets_one_epoch_further(time):
    clock = TimeLimit(0.0, time)
    clock.before_epoch(1e6)
    with pytest.raises(OutOfTime):
        clock.before_epoch(1.0)


def test_without_a_limit_nothing_is_refused(time):
    clock = TimeLimit(now=time)
    for _ in range(3):
        time.now_s += 1e9
        clock.before_epoch(1e9)


def test_any_number_of_signals_sets_the_flag_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_flag() as stop:
        assert not stop.is_set
        for _ in range(50):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_no_handler_can_be_set_and_none_is():
    flags = []

    def run() -> None:
        with sigterm_flag() as stop:
            flags.append(stop.is_set)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert flags == [False]
