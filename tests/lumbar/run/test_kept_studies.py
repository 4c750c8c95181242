"""Studies kept between rounds: up to a bound, as they were read, and none whose reading may go better next time."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.problems import Problem
from kernels.lumbar.run import kept_studies
from kernels.lumbar.run.kept_studies import KeptStudies, default_limit_bytes

PLANE = Plane(np.zeros(3), np.eye(3)[0], np.eye(3)[1])


def study(name: str, *kinds: str, size: int = 100) -> Study:
    stack = Stack("1", "axial_t2", np.zeros((1, 10, size // 10), np.uint8), (PLANE,), (1,))
    return Study(name, (stack,), [Problem(name, "", kind, "") for kind in kinds])


def test_the_first_that_fit_are_kept_and_stay():
    kept = KeptStudies(250)
    for name, size in (("1", 100), ("2", 200), ("3", 100), ("3", 100), ("4", 60)):
        kept.keep(study(name, size=size))
    assert [name for name in "1234" if kept.get(name)] == ["1", "3"]
    assert (len(kept), kept.bytes) == (2, 200)


def test_what_networks_say_of_a_study_is_not_kept_with_it():
    kept, read = KeptStudies(1000), study("1", "several-stacks")
    kept.keep(read)
    read.problems.append(Problem("1", "net", "grader-failed", ""))
    first = kept.get("1")
    assert first is not None and [one.kind for one in first.problems] == ["several-stacks"]
    first.problems.append(Problem("1", "net", "grader-failed", ""))
    again = kept.get("1")
    assert again is not None and [one.kind for one in again.problems] == ["several-stacks"]
    assert again.stacks is read.stacks


@pytest.mark.parametrize("kind", sorted(kept_studies.MAY_PASS))
def test_what_a_failing_disk_may_have_spoilt_is_read_again(kind):
    kept = KeptStudies(1000)
    kept.keep(study("1", "several-stacks", kind))
    kept.keep(Study("2", (), []))
    assert len(kept) == 0


def test_nothing_is_kept_for_no_later_round():
    kept = KeptStudies(1000)
    kept.keep(study("1"))
    kept.is_open = False
    kept.keep(study("2"))
    assert kept.get("1") and not kept.get("2")


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("MemTotal: 9 kB\nMemAvailable:    1000000 kB\n", 102_400_000),
        ("MemAvailable: 900000000 kB\n", kept_studies.KEPT_BYTES),
        ("MemFree: 5 kB\n", kept_studies.KEPT_BYTES),
        (None, kept_studies.KEPT_BYTES),
    ],
)
def test_a_small_machine_keeps_less(tmp_path, monkeypatch, text, limit):
    path = tmp_path / "meminfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(kept_studies, "MEMINFO", path)
    assert default_limit_bytes() == limit
