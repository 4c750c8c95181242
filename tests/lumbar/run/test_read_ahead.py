"""Reading ahead: in order, a bounded window, and no read can hold up the rest."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.run import read_ahead as reading
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.in_progress import InProgress
from kernels.lumbar.run.kept_studies import KeptStudies
from kernels.lumbar.run.read_ahead import ReadAhead, read_ahead

NAMES = [str(number) for number in range(12)]
SERIES = {name: [("1", "axial_t2")] for name in NAMES}


@pytest.fixture
def begun(monkeypatch) -> list[str]:
    """The studies whose reading was begun, none of which holds anything."""
    started: list[str] = []

    def read(folder, study_id, series):
        started.append(study_id)
        return Study(study_id, (), [])

    monkeypatch.setattr(reading, "read_study", read)
    return started


def ahead(tmp_path, batches, **more) -> ReadAhead:
    return ReadAhead(tmp_path, SERIES, batches, Clock(1e6), **more)


def test_studies_come_in_order_once(tmp_path, begun):
    assert [study.study_id for study in read_ahead(tmp_path, SERIES, NAMES, Clock(1e6))] == NAMES == begun


def test_no_more_is_read_than_the_window_holds(tmp_path, begun):
    window = ahead(tmp_path, [[name] for name in NAMES], ahead=3)
    taken = [next(window) for _ in range(2)]
    while len(begun) < 5:
        time.sleep(0.01)
    time.sleep(0.1)
    assert [batch.studies[0].study_id for batch in taken] == ["0", "1"] and len(begun) == 5
    window.close()


def test_several_readers_and_takers_hand_over_every_study_once(tmp_path, begun):
    window = ahead(tmp_path, [NAMES[start : start + 3] for start in range(0, 12, 3)], threads=3, ahead=3)
    taken: list[str] = []
    takers = [
        threading.Thread(target=lambda: taken.extend(s.study_id for batch in window for s in batch.studies))
        for _ in range(2)
    ]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(60)
    assert sorted(taken) == sorted(begun) == sorted(NAMES) and not window.stalled


def test_what_never_comes_costs_itself_alone_and_is_named(tmp_path, begun, monkeypatch):
    never, read = threading.Event(), reading.read_study

    def stalling(folder, study_id, series):
        if study_id == "1":
            never.wait()
        return read(folder, study_id, series)

    monkeypatch.setattr(reading, "read_study", stalling)
    window = ahead(tmp_path, [NAMES[:3], NAMES[3:5]], patience_s=2.0)
    batches = list(window)
    assert [[study.study_id for study in batch.studies] for batch in batches] == [NAMES[:3], NAMES[3:5]]
    stalled = ["reading-stalled" in {one.kind for one in study.problems} for study in batches[0].studies]
    assert stalled == [False, True, False] and window.stalled == {"1"}
    never.set()
    time.sleep(0.2)
    assert len(batches[0].studies) == 3, "what comes too late is nobody's"


def test_every_read_may_hang_and_the_rest_still_comes(tmp_path, begun, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(reading, "read_study", lambda *given: never.wait() and None)
    window = ahead(tmp_path, [[name] for name in NAMES[:3]], patience_s=0.2)
    assert [batch.studies[0].study_id for batch in window] == NAMES[:3] and window.stalled == set(NAMES[:3])
    never.set()


def test_a_pause_of_the_machine_is_no_stall(tmp_path, begun, monkeypatch):
    gate = threading.Event()
    read = reading.read_study
    monkeypatch.setattr(reading, "read_study", lambda *given: gate.wait() and read(*given))
    window = ahead(tmp_path, [["0"]], patience_s=9.0)
    threading.Timer(0.3, gate.set).start()
    now = time.monotonic
    jumps = iter(range(0, 10**6, 100))
    monkeypatch.setattr(reading, "time", SimpleNamespace(monotonic=lambda: now() + next(jumps)))
    assert next(window).studies[0].study_id == "0" and not window.stalled


def test_a_reader_that_breaks_costs_that_study_alone(tmp_path, begun, monkeypatch):
    def breaking(folder, study_id, series):
        raise RecursionError("nobody foresaw this")

    monkeypatch.setattr(reading, "read_study", breaking)
    (study,) = read_ahead(tmp_path, SERIES, ["3"], Clock(1e6))
    assert [problem.kind for problem in study.problems] == ["study-unreadable"] and study.stacks == ()


def test_what_is_kept_is_not_read_again(tmp_path, begun, monkeypatch):
    kept, path = KeptStudies(), tmp_path / "in_progress.json"
    study = read_study_of_one_slice("3")
    kept.keep(study)
    monkeypatch.setattr(
        reading, "read_study", lambda *given: begun.append(given[1]) or read_study_of_one_slice(given[1])
    )
    clock = Clock(1e6)
    for _ in range(2):
        batches = ReadAhead(tmp_path, SERIES, [NAMES[:2], NAMES[2:5]], clock, InProgress(path), kept=kept)
        assert [[one.study_id for one in batch.studies] for batch in batches] == [NAMES[:2], NAMES[2:5]]
    assert begun == ["0", "1", "2", "4"] and len(kept) == 5
    assert json.loads(path.read_text())["now"] == [], "what was not begun is not released"
    assert clock._measured["read"].studies == 4, "a study that is at hand says nothing of the time of a read"


def read_study_of_one_slice(name: str) -> Study:
    plane = Plane(np.zeros(3), np.eye(3)[0], np.eye(3)[1])
    return Study(name, (Stack("1", "axial_t2", np.zeros((1, 8, 8), np.uint8), (plane,), (1,)),), [])


def test_what_is_in_hand_is_on_disk(tmp_path, monkeypatch):
    path, seen = tmp_path / "in_progress.json", []

    def read(folder, study_id, series):
        seen.append(InProgress(path).deaths)  # what the next kernel would find, were this one killed now
        return Study(study_id, (), [])

    monkeypatch.setattr(reading, "read_study", read)
    list(ahead(tmp_path, [["7"]], in_progress=InProgress(path)))
    assert seen == [{"7": 1}]
