"""Whose the time of a device is, where several batches are in flight on it."""

from __future__ import annotations

import random
import threading
import time
from types import SimpleNamespace

import pytest

from kernels.lumbar.run import device_time
from kernels.lumbar.run.device_time import DeviceTime, Lane


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock whose seconds `s` a test moves."""
    clock = SimpleNamespace(s=0.0)
    monkeypatch.setattr(device_time, "time", SimpleNamespace(monotonic=lambda: clock.s))
    return clock


def lanes(count: int) -> list[Lane]:
    device = DeviceTime()
    return [Lane(device, str(number)) for number in range(count)]


def test_time_behind_a_forward_belongs_to_the_forward_and_other_time_to_all_in_flight(now):
    first, second = lanes(2)
    now.s += 100.0  # nothing is in flight: nobody's
    with first.in_flight():
        now.s += 3.0  # alone
        with second.in_flight():
            with first.forward():
                now.s += 4.0  # what the second does meanwhile is hidden
            now.s += 2.0  # both cut
            with second.forward():
                now.s += 5.0
        assert (first.seconds(), second.seconds()) == (3 + 4 + 1, 1 + 5)
    now.s += 50.0
    assert (first.seconds(), second.seconds()) == (8, 6)


def test_seconds_of_all_batches_are_the_time_in_which_any_was_in_flight(now):
    draw, passed_s = random.Random(3), 0.0
    three = lanes(3)
    open_: dict[Lane, object] = {}
    for _ in range(500):
        lane = draw.choice(three)
        if lane in open_:
            open_.pop(lane).__exit__(None, None, None)  # type: ignore[attr-defined]
        else:
            open_[lane] = lane.in_flight()
            open_[lane].__enter__()  # type: ignore[attr-defined]
        step_s = draw.random()
        if open_ and draw.random() < 0.5:
            with draw.choice(list(open_)).forward():
                now.s += step_s
        else:
            now.s += step_s
        passed_s += step_s if open_ else 0.0
    assert sum(lane.seconds() for lane in three) == pytest.approx(passed_s)


def test_forwards_wait_for_each_other_and_one_that_fails_lets_the_next_go():
    first, second = lanes(2)
    running, most = [0], [0]

    def forwards(lane: Lane, fails: bool) -> None:
        for _ in range(20):
            try:
                with lane.forward():
                    running[0] += 1
                    most[0] = max(most[0], running[0])
                    time.sleep(0.001)
                    running[0] -= 1
                    if fails:
                        raise RuntimeError("out of memory")
            except RuntimeError:
                pass

    threads = [threading.Thread(target=forwards, args=given) for given in ((first, True), (second, False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert most == [1]
