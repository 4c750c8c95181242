"""Batches prepared in threads, ahead of the device that uses them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2

Result = TypeVar("Result")


def ahead(tasks: Iterable[Callable[[], Result]], threads: int) -> Iterator[Result]:
    """The results of some tasks in their order; so many run at once, and at most one more result waits.

    An exception of a task is raised in its place.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, "cut", lambda: cv2.setNumThreads(1)) as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(task))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
