"""Studies that were in progress when a kernel was killed run last and alone, or are left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels.lumbar.run import in_progress, output_check
from kernels.lumbar.run.in_progress import InProgress

NAMES = ["1", "2", "3", "4", "5"]


def test_suspects_come_last_and_alone_and_the_guilty_not_at_all(tmp_path):
    path = tmp_path / "in_progress.json"
    first = InProgress(path)
    first.take(["2", "3", "4"])
    first.release(["4"])
    second = InProgress(path)
    assert second.groups(NAMES) == [["1", "4", "5"], ["2"], ["3"]] and second.abandoned == []
    second.take(["1", "4"])
    second.release(["1", "4"])
    second.take(["3"])
    third = InProgress(path)
    assert third.abandoned == ["3"] and third.groups(NAMES) == [["1", "4", "5"], ["2"]]


def test_one_that_is_read_and_graded_at_once_dies_once(tmp_path):
    path = tmp_path / "in_progress.json"
    first = InProgress(path)
    first.take(["2"])
    first.take(["2"])
    assert InProgress(path).deaths == {"2": 1}


def test_the_tally_outlives_a_kernel_that_is_killed_while_it_writes(tmp_path, monkeypatch):
    path = tmp_path / "in_progress.json"
    InProgress(path).take(["2"])
    second = InProgress(path)

    def die(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(in_progress.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        second.take(["3"])
    assert InProgress.__module__ and in_progress._deaths(path) == {"2": 1}


def test_a_full_disk_costs_nothing_but_the_knowledge(tmp_path):
    folder = tmp_path / "in_progress.json"
    folder.mkdir()
    hand = InProgress(folder)
    hand.take(NAMES)
    hand.release(NAMES)


@pytest.mark.parametrize("left", [None, "", '{"deaths": {"1"', "[]", '{"deaths": 3, "now": []}'])
def test_a_torn_file_accuses_nobody(tmp_path, left):
    path = tmp_path / "in_progress.json"
    if left is not None:
        path.write_text(left)
    assert InProgress(path).groups(NAMES) == [NAMES]


def test_without_a_path_nothing_is_written(tmp_path):
    hand = InProgress()
    hand.take(NAMES)
    assert list(tmp_path.iterdir()) == []


def test_what_a_thread_writes_while_the_progress_is_removed_keeps_nothing_of_it(tmp_path, monkeypatch):
    (tmp_path / output_check.PROGRESS).mkdir()
    at_work = InProgress(tmp_path / output_check.PROGRESS / output_check.IN_PROGRESS)

    def remove(folder: Path, ignore_errors: bool) -> None:
        if folder.is_dir():
            for path in folder.iterdir():
                path.unlink()
            at_work.take(["1"])
            folder.rmdir()

    monkeypatch.setattr(output_check.shutil, "rmtree", remove)
    output_check.remove_progress(tmp_path)
    assert not list(tmp_path.iterdir())
