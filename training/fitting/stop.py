"""SIGTERM, by which clusters and rented machines say that they want a machine back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from training.fitting.time_limit import OutOfTime


class StoppedBySignal(OutOfTime):
    """SIGTERM came: all that was done is in the checkpoint, and the same command goes on from there."""


class Stop:
    """Whether SIGTERM has come."""

    asked = False


@contextmanager
def stop_on_sigterm() -> Iterator[Stop]:
    """While this lasts SIGTERM ends nothing, and is remembered.  Only the main thread hears of signals."""
    stop = Stop()

    def remember(number: int, frame: FrameType | None) -> None:
        stop.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, remember)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
