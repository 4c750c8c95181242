"""A clock for the whole kernel that only a test moves."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from kernels.lumbar import predict
from kernels.lumbar.answers import route
from kernels.lumbar.networks import loading
from kernels.lumbar.run import device_time, read_ahead, rounds
from kernels.lumbar.run.clock import Clock


class HeldClock:
    """A clock that moves only where a test says so, so that no other load on the machine counts."""

    def __init__(self) -> None:
        self._now_s, self._lock = 0.0, threading.Lock()

    def monotonic(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self._now_s += seconds


def hold_clock(monkeypatch: pytest.MonkeyPatch) -> HeldClock:
    """Put a held clock wherever the kernel looks at the time."""
    clock = HeldClock()
    for module in (loading, predict, read_ahead, rounds, route, device_time):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(predict, "Clock", partial(Clock, now=clock.monotonic))
    return clock
