"""Decodes studies into stack files, in one process or several."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2

from kernels.lumbar.dicom.read_study import read_study
from training.data.cache.stack_file import write_stacks

STUDIES_A_TASK = 4
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Task:
    """One study to decode."""

    study: str
    folder: Path
    series: list[tuple[str, str]]
    """Series id and kind, as in training.data.tables.Tables.series."""
    file: Path
    """The stack file to write."""
    made_of: str
    """Digest of the inputs."""


def decode_all(tasks: Sequence[Task], jobs: int) -> Iterator[str]:
    """Decode all studies, in order; gives their names.  Raises BrokenProcessPool if a worker dies, OSError."""
    return in_processes(decode, tasks, jobs)


def in_processes(work: Callable[[Given], Made], tasks: Sequence[Given], jobs: int) -> Iterator[Made]:
    """The results of `work`, a function of a module, in the order of the tasks, which `jobs` processes share.

    Raises BrokenProcessPool if one dies, and what `work` raises.
    """
    if jobs <= 1:
        yield from map(work, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker) as pool:
        try:
            yield from pool.map(work, tasks, chunksize=STUDIES_A_TASK)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin_worker() -> None:
    cv2.setNumThreads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Ends a worker whose parent was killed, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def decode(task: Task) -> str:
    """Read one study and write its stack file; damaged data become Problems of the study.  Raises OSError."""
    write_stacks(task.file, read_study(task.folder, task.study, task.series), task.made_of)
    return task.study
