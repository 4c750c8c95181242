"""Batches in flight on a device: their forwards one at a time, and the elapsed time shared out among them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


class DeviceTime:
    """Elapsed time of a device, shared out among the batches in flight on it.  Thread-safe.

    A moment belongs to the batch whose forward runs; while none runs, to all batches in flight in equal parts.  So
    their seconds add up to the time that passed while any was in flight: what one batch does behind a forward of
    another costs nothing, and no moment counts twice.
    """

    def __init__(self) -> None:
        self.one_forward = threading.Lock()
        """Held during a forward, so that two batches in flight need the memory of one forward."""
        self._lock = threading.Lock()
        self._in_flight: list[Lane] = []
        self._in_forward: Lane | None = None
        self._shared_until = time.monotonic()

    def begin(self, lane: Lane) -> None:
        """A batch is in flight from now on."""
        with self._lock:
            self._share_out()
            self._in_flight.append(lane)

    def end(self, lane: Lane) -> None:
        """A batch is no longer in flight."""
        with self._lock:
            self._share_out()
            self._in_flight.remove(lane)

    def in_forward(self, lane: Lane | None) -> None:
        """The batch whose forward runs from now on; None = no forward runs."""
        with self._lock:
            self._share_out()
            self._in_forward = lane

    def seconds(self, lane: Lane) -> float:
        """A lane's share of the time so far."""
        with self._lock:
            self._share_out()
            return lane.share_s

    def _share_out(self) -> None:
        """Give the time since the last call to its owners; with the lock held."""
        now = time.monotonic()
        passed_s, self._shared_until = now - self._shared_until, now
        owners = self._in_flight if self._in_forward is None else [self._in_forward]
        for lane in owners:
            lane.share_s += passed_s / len(owners)


class Lane:
    """One of the batches in flight on a device: its share of the time, and the thread that cuts its inputs."""

    def __init__(self, device_time: DeviceTime, name: str) -> None:
        self._time = device_time
        self.executor = ThreadPoolExecutor(1, thread_name_prefix=f"cut-{name}")
        self.share_s = 0.0
        """Kept by DeviceTime."""
        self.silent_s = 0.0
        """Seconds since its last heartbeat, the begin or end of a forward: counted up by the worker's monitor."""

    def seconds(self) -> float:
        """The share of the elapsed time so far: differences between two calls are what a step took."""
        return self._time.seconds(self)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Around all work on a batch."""
        self._time.begin(self)
        try:
            yield
        finally:
            self._time.end(self)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around each forward: waits until no other one runs on the device."""
        with self._time.one_forward:
            self._time.in_forward(self)
            self.silent_s = 0.0
            try:
                yield
            finally:
                self._time.in_forward(None)
                self.silent_s = 0.0
