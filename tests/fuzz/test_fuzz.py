"""The fuzzer: it finds what is planted, finds can be read again, and a few hundred cases of one seed find nothing."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.lumbar.dicom import pixels
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.networks.weights import WeightsError, checked_bytes, find_manifest, read_manifest
from kernels.lumbar.run.competition import read_series_table
from kernels.lumbar.run.submission import replace_json
from tests.fuzz import bytes_of, cases, checks, dicom_bytes, dicom_pixels, hunt, material, worker
from tests.fuzz.__main__ import main
from tests.support.dicom.dicom_writer import texture, upright_grid, write_series

SEED, CASES = 20, 200


def test_a_few_hundred_cases_find_nothing(tmp_path):
    with hunt.Hunt(tmp_path, SEED) as one:
        tally = one.run(range(CASES))
    assert tally.kept == []
    assert tally.cases == CASES and {target for target, _ in tally.outcomes} == set(cases.TARGETS)
    outcomes = Counter(outcome for target, outcome in tally.outcomes.elements() if target == "study")
    assert outcomes["part"] > outcomes["nothing"], "most damage leaves nothing to read: too coarse to find much"


def test_a_case_is_the_same_whenever_it_is_made(tmp_path):
    made = []
    for name in ("a", "b"):
        for number in range(12):
            folder = tmp_path / name / str(number)
            folder.mkdir(parents=True)
            cases.make(folder, 5, number)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        made.append([(str(path.relative_to(tmp_path / name)), path.read_bytes()) for path in files])
    assert made[0] == made[1]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400) | st.sampled_from(material.series("axial_t2", "rle")), st.integers(0, 99))
def test_every_change_takes_any_bytes(data, seed):
    random = np.random.default_rng(seed)
    for change in (*bytes_of.CHANGES, *dict.fromkeys(dicom_bytes.CHANGES), *dicom_pixels.CHANGES):
        assert isinstance(change(data, random), bytes)


@pytest.mark.parametrize("make", material.MAKES)
def test_the_sound_series_are_sound(make, tmp_path):
    for number, data in enumerate(material.series("sagittal_t1", make), 1):
        (tmp_path / "1").mkdir(exist_ok=True)
        (tmp_path / "1" / f"{number}.dcm").write_bytes(data)
    study = read_study(tmp_path, "7", [("1", "sagittal_t1")])
    assert study.problems == [] and len(study.stacks) == 1


# --- what counts as a find

PLANTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "an exception": (lambda _: [][0], "IndexError: list index out of range"),
    "an invariant": (lambda _: checks.holds(False, "pixels are finite"), "broken: pixels are finite"),
    "a file elsewhere": (lambda folder: (folder / "elsewhere").write_text(""), "does more than read: open"),
    "memory": (lambda _: np.ones(400_000_000, np.uint8).sum(), "memory: study"),
    "time": (lambda _: spend(0.3), "slow: study"),
}


def spend(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.fixture(scope="module")
def watch() -> worker.Watch:
    return worker.Watch()


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_found(name, tmp_path, monkeypatch, watch):
    plant, signature = PLANTED[name]
    if name == "time":  # a busy machine spends as much on the memory
        monkeypatch.setattr(worker, "MOST_CPU_S", 0.2)
    # Far below what is planted: the system takes pages of the tests before away meanwhile.
    monkeypatch.setattr(worker, "MOST_MEMORY_BYTES", 30_000_000)
    monkeypatch.setattr(checks, "run", lambda case, folder: plant(folder))
    found = worker.read_case({"target": "study"}, tmp_path, watch)
    assert found["outcome"] == "find" and found["signature"] == signature
    monkeypatch.setattr(checks, "run", lambda case, folder: (folder / "out").mkdir() or "whole")
    assert "signature" not in worker.read_case({"target": "study"}, tmp_path, watch)


STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
case = Path(sys.argv[1]) / "case"
for line in sys.stdin:
    number = json.loads(line)["number"]
    case.mkdir(exist_ok=True)
    (case / "case.json").write_text(json.dumps({"target": "study", "mutations": ["flip_bits"]}))
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 2:
        time.sleep(60)
    print(json.dumps({"target": "study", "mutations": [], "outcome": "whole"}), flush=True)
"""


def test_a_worker_that_crashes_or_hangs_is_a_find_and_the_next_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(hunt, "command", lambda folder: [sys.executable, "-S", "-c", STAND_IN, str(folder)])
    monkeypatch.setattr(hunt, "HANG_S", 4.0)
    with hunt.Hunt(tmp_path, 9) as one:
        tally = one.run(range(4))
    assert dict(tally.outcomes) == {("study", "whole"): 2, ("study", "find"): 2}
    assert dict(tally.finds) == {"death of the process: SIGSEGV": 1, "hang": 1}
    for (_, folder, _), number in zip(tally.kept, (1, 2), strict=True):
        assert folder == tmp_path / f"find-9-{number}"
        assert json.loads((folder / "find.json").read_text())["mutations"] == ["flip_bits"]


def test_a_find_is_kept_and_can_be_read_again(tmp_path, capsys):
    folder = tmp_path / "find"
    folder.mkdir()
    (folder / "sample_submission.csv").write_text("row_id\n4_left\n")
    (folder / cases.CASE).write_text('{"target": "no such target", "mutations": []}')
    assert main(["--again", str(folder)]) == 1
    assert "find: KeyError" in capsys.readouterr().out


# --- what it found, once and for all

GRID = upright_grid("sagittal", (4, 20, 24))


def test_names_that_are_no_text_do_not_keep_the_report_from_being_written(tmp_path):
    name = "\udcff.dcm"
    replace_json(tmp_path / "report.json", {"where": name})
    assert json.loads((tmp_path / "report.json").read_text()) == {"where": name}


def test_a_file_that_cannot_be_written_leaves_no_part(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_json(tmp_path / "report.json", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("series", ["", ".", "..", "a/b", "/etc", "a\0b", "\\"])
def test_series_that_cannot_be_folders_of_their_study_are_problems(series, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(f'study_id,series_id,series_description\n4,"{series} ",Axial T2\n5,6,Axial T2\n5, 6,Axial T2 \n')
    found = read_series_table(table)
    assert found.series == {"5": [("6", "axial_t2")]}
    assert [one.kind for one in found.problems] == ["wrong-id"]


def test_a_name_that_no_path_can_have_is_a_folder_that_is_not_there(tmp_path):
    study = read_study(tmp_path, "7", [("a\0b", "axial_t2")])
    assert [one.kind for one in study.problems] == ["no-folder"]


def test_what_is_read_of_a_series_does_not_depend_on_those_before_it(tmp_path):
    """Without BitsAllocated pydicom refuses a file, and the fast path would take 16 for granted."""
    write_series(tmp_path / "good" / "1", texture(GRID.shape), GRID)
    write_series(tmp_path / "bad" / "1", texture(GRID.shape), GRID)
    for path in (tmp_path / "bad" / "1").iterdir():
        data = path.read_bytes()
        one = next(found for found in dicom_bytes.elements(data) if found.tag == 0x00280100)
        path.write_bytes(data[: one.start] + data[one.end :])
    kinds = []
    for name in ("bad", "good", "bad"):
        study = read_study(tmp_path / name, "7", [("1", "sagittal_t1")])
        kinds.append([(problem.kind, problem.detail) for problem in study.problems])
    assert kinds[0] == kinds[2] != [] and kinds[1] == []


def test_problems_name_no_addresses(tmp_path):
    """Else two runs on the same files would have two reports."""
    write_series(tmp_path / "1", texture(GRID.shape), GRID)
    (data,) = material.series("axial_t2", "jpeg")[:1]
    at = data.index(b"\xff\xd8\xff")
    (tmp_path / "1" / "9.dcm").write_bytes(data[:at] + b"no image" + data[at + 8 :])
    (problem,) = read_study(tmp_path, "7", [("1", "sagittal_t1")]).problems
    assert "cannot identify image" in problem.detail and "0x" not in problem.detail


@pytest.mark.parametrize(("megabytes", "is_read"), [(1, True), (20, True), (1500, False)])
def test_what_inflates_without_end_takes_neither_time_nor_memory(megabytes, is_read, monkeypatch):
    monkeypatch.setattr(dicom_pixels, "pick", lambda choices, random: megabytes)
    data = dicom_pixels.inflate(material.series("axial_t2", "explicit")[0], np.random.default_rng(0))
    buffer, started = np.frombuffer(data, np.uint8), time.process_time()
    if is_read:
        assert pixels.read_dataset(buffer, len(data)).Rows == material.HEIGHT
    else:
        with pytest.raises(ValueError, match="inflate to more"):
            pixels.read_dataset(buffer, len(data))
    assert time.process_time() - started < 3


def read_weights(folder: Path, document: Any) -> None:
    """As the kernel does: a WeightsError is what it expects."""
    (folder / "weights-0.bin").write_bytes(material.NETWORK)
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / "manifest.json").write_text(text)
    find_manifest([folder])
    for artefact in read_manifest(folder / "manifest.json").artefacts:
        checked_bytes(folder, artefact)


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"format": "lumbar-kit-manifest", "x": '])
def test_a_manifest_without_bottom_is_none(opening, tmp_path):
    with pytest.raises(WeightsError):
        read_weights(tmp_path, opening * 100_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("file", "a\0b"), ("file", "\ud800"), ("file", "x" * 5000), ("file", "loop"), ("file", "/dev/zero"),
        ("file", ""), ("offset", 10**30), ("offset", 2**62), ("bytes", 10**30), ("bytes", 10**13), ("bytes", 2**31),
    ],
)  # fmt: skip
def test_weights_that_cannot_lie_where_the_manifest_says_cost_the_member(name, value, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    document = copy.deepcopy(material.manifest())
    read_weights(tmp_path, document)
    document["artefacts"][0]["weights"][name] = value
    with pytest.raises(WeightsError):
        read_weights(tmp_path, document)
