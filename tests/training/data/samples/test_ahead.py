"""Batches that are prepared ahead: in order, a bounded number, errors in their place."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from training.data.samples.ahead import ahead


def test_results_come_in_order_whatever_each_takes():
    def task(number):
        time.sleep(0.02 * (number % 3))
        return number

    assert list(ahead((partial(task, number) for number in range(12)), 3)) == list(range(12))
    assert list(ahead((), 2)) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_tasks_are_begun_than_threads_and_one(threads):
    begun = []
    results = ahead((partial(begun.append, number) for number in range(50)), threads)
    for taken in range(1, 6):
        next(results)
        time.sleep(0.02)
        assert len(begun) <= taken + threads
    results.close()
    assert len(begun) <= 5 + threads and threading.active_count() < 20


def test_an_error_is_raised_in_its_place():
    results = ahead([lambda: 1, lambda: 1 // 0, lambda: 3], 2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
