"""The fault table through the built notebook: whatever a study is, the file is complete and the other studies the same.

One run holds a study for every fault; each test reads its own study from it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kernels.build_notebook import NOTEBOOK_NAME, write_kernel
from kernels.lumbar.labels import ROWS
from kernels.simulate import __main__ as simulate
from tests.support.faults.fault_runs import SAMPLE, SERIES_TABLE, Answered, answered, with_tables, write_studies
from tests.support.faults.fault_table import CONSEQUENCES, FAULTS
from tests.support.networks.seeing_networks import NanOnImages, artefacts, network_of, replace_network, seeing_package

CLEAN = ("0", "505", "999")
"""First, in the middle and last: all the same study, so that nothing that came before may matter."""
IDS = {name: str(100 + 10 * number) for number, name in enumerate(FAULTS)}
SMALL = 1e-5
Run = Callable[[Path, Path, str], Answered]


@pytest.fixture(scope="module")
def weights(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeing_package(package, tmp_path_factory.mktemp("seeing") / "weights")


@pytest.fixture(scope="module")
def run_notebook(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the built notebook on a competition's folder and a package."""
    kernel = tmp_path_factory.mktemp("kernel")
    write_kernel(kernel, "someone")

    def run(data: Path, weights: Path, name: str) -> Answered:
        out = tmp_path_factory.mktemp(name)
        given = ["--data", data, "--weights", weights, "--out", out, "--notebook", kernel / NOTEBOOK_NAME]
        return answered(simulate.main([*map(str, given), "--no-public", "--python", sys.executable]), data, out)

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_studies(tmp_path_factory.mktemp("healthy"), CLEAN, {})


@pytest.fixture(scope="module")
def healthy(run_notebook: Run, data: Path, weights: Path) -> Answered:
    """Without a fault."""
    found = run_notebook(data, weights, "healthy_out")
    assert found.report["problems"] == []
    return found


@pytest.fixture(scope="module")
def faulty(run_notebook: Run, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    """With all of them."""
    folder = tmp_path_factory.mktemp("faulty") / "data of a café"
    write_studies(folder, CLEAN, {study: name for name, study in IDS.items()})
    return run_notebook(folder, weights, "faulty_out")


def test_the_run_with_every_fault_grades_every_study_with_every_member(faulty: Answered, weights: Path) -> None:
    count = len(FAULTS) + len(CLEAN)
    assert len(faulty.frame) == count * len(ROWS)
    assert faulty.report["studies"] == {"asked": count, "graded": count}
    assert faulty.report["members_used"] == [one.member.name for one in artefacts(weights)]
    assert faulty.problems() == set()


@pytest.mark.parametrize("study", CLEAN)
def test_healthy_studies_are_the_same_to_the_last_bit(study: str, healthy: Answered, faulty: Answered) -> None:
    assert np.array_equal(faulty.rows(study), healthy.rows(study))
    assert faulty.problems(study) == set()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_costs_no_more_than_it_must(name: str, healthy: Answered, faulty: Answered) -> None:
    expected, study = FAULTS[name], IDS[name]
    is_spared = expected.is_sound or expected.answers in ("same", "near")
    found = faulty.problems(study)
    assert expected.problems <= found <= expected.problems | (frozenset() if is_spared else CONSEQUENCES)
    difference = float(np.abs(faulty.rows(study) - healthy.rows(CLEAN[0])).max())
    assert {"same": difference == 0, "near": difference <= SMALL}.get(expected.answers, difference > SMALL), difference
    priors = faulty.report["fallbacks"]["studies"].get(study, [])
    assert (len(priors) == len(ROWS)) == (expected.answers == "prior")


def test_the_notebook_reads_tables_of_another_make(
    run_notebook: Run, data: Path, weights: Path, healthy: Answered, tmp_path: Path
) -> None:
    """Other columns, line ends and order, and studies that nobody asks for."""
    series, sample = ((data / name).read_text().splitlines() for name in (SERIES_TABLE, SAMPLE))
    series = [f"{line},remark {number}" for number, line in enumerate([series[0], "7,8,Axial T2", *series[:0:-1]])]
    sample = [f"{line},é" for line in [sample[0], *sample[:0:-1]]]
    tables = {SERIES_TABLE: series, SAMPLE: [sample[0].replace(",é", ""), *(line[:-2] for line in sample[1:])]}
    made = with_tables(data, tmp_path / "data", {name: "\r\n".join(t).encode() for name, t in tables.items()})
    found = run_notebook(made, weights, "tables_out")
    for study in CLEAN:
        assert np.array_equal(found.rows(study), healthy.rows(study))


def test_the_notebook_does_without_members_that_are_spoilt(
    run_notebook: Run, data: Path, weights: Path, healthy: Answered, tmp_path: Path
) -> None:
    """One answers NaN, one has another sha256, one lost its file: the rest grade."""
    spoilt = seeing_package(weights, tmp_path / "weights")
    answers_nan, corrupt, lost = [one for one in artefacts(spoilt) if one.member.role == "grader"][:3]
    replace_network(spoilt, answers_nan.member.name, NanOnImages(network_of(answers_nan)))
    (spoilt / corrupt.weights.file).write_bytes(b"\0" * corrupt.weights.bytes)
    (spoilt / lost.weights.file).unlink()
    found = run_notebook(data, spoilt, "members_out")
    unusable = {one["where"] for one in found.report["problems"] if one["kind"] == "member-unusable"}
    assert unusable == {corrupt.member.name, lost.member.name}
    assert {one["where"] for one in found.report["problems"] if one["kind"] == "not-finite"} == {
        answers_nan.member.name
    }
    assert found.report["fallbacks"]["rows"] == 0
    assert not np.array_equal(found.rows(CLEAN[0]), healthy.rows(CLEAN[0]))
