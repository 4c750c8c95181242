"""The fault table's weights, in process: a spoilt member costs itself alone, a spoilt manifest leaves the priors."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kernels.lumbar.labels import ROWS
from kernels.lumbar.manifest import Artefact
from kernels.lumbar.networks.weights import MANIFEST_FILE
from tests.support.faults.fault_runs import Answered, assert_same, run_here
from tests.support.networks.seeing_networks import (
    FailsOnImages,
    NanOnImages,
    artefacts,
    network_of,
    replace_bytes,
    replace_network,
    seeing_package,
)

STUDIES = ("1", "2")


class Intruder:
    """A pickle that would leave a mark where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.mkdir, (self.mark,)


def flip_a_byte(package: Path, one: Artefact) -> None:
    path = package / one.weights.file
    content = bytearray(path.read_bytes())
    content[one.weights.offset + one.weights.bytes // 2] ^= 0xFF
    path.write_bytes(content)


def truncate(package: Path, one: Artefact) -> None:
    path = package / one.weights.file
    path.write_bytes(path.read_bytes()[: one.weights.offset + one.weights.bytes - 9])


def put_a_pickle(package: Path, one: Artefact) -> None:
    replace_bytes(package, one.member.name, pickle.dumps(Intruder(package / "intruded")))


SPOILT: dict[str, tuple[Callable[[Path, Artefact], object], str]] = {
    "a flipped byte": (flip_a_byte, "member-unusable"),
    "a truncated file": (truncate, "member-unusable"),
    "no file": (lambda package, one: (package / one.weights.file).unlink(), "member-unusable"),
    "a pickle that the manifest vouches for": (put_a_pickle, "member-unusable"),
    "text that the manifest vouches for": (
        lambda p, one: replace_bytes(p, one.member.name, b"text"),
        "member-unusable",
    ),
    "NaN as answer": (lambda p, one: replace_network(p, one.member.name, NanOnImages(network_of(one))), "not-finite"),
    "a failing pass": (lambda p, one: replace_network(p, one.member.name, FailsOnImages(network_of(one))), "-failed"),
}


def without(package: Path, name: str, out: Path) -> Path:
    """A copy of a package that never had a member."""
    shutil.copytree(package, out)
    document = json.loads((out / MANIFEST_FILE).read_text())
    document["artefacts"] = [one for one in document["artefacts"] if one["member"]["name"] != name]
    for route in document["routes"]:
        route["localisers"] = [one for one in route["localisers"] if one != name]
        route["graders"] = [one for one in route["graders"] if one["name"] != name]
    (out / MANIFEST_FILE).write_text(json.dumps(document))
    return out


@pytest.mark.parametrize("role", ["localiser", "grader"])
@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_member_costs_itself_alone(
    name: str, role: str, clean_pair: Path, seeing: Path, clean_answers: Answered, tmp_path: Path
) -> None:
    """The answers are those of a package that never had it."""
    spoil, kind = SPOILT[name]
    spoilt = seeing_package(seeing, tmp_path / "spoilt")
    victim = [one for one in artefacts(spoilt) if one.member.role == role][-1]
    spoil(spoilt, victim)
    found = run_here(clean_pair, spoilt, tmp_path / "out")
    expected = run_here(clean_pair, without(seeing, victim.member.name, tmp_path / "without"), tmp_path / "other")
    assert_same(found, expected, *STUDIES)
    assert not np.array_equal(found.rows(STUDIES[0]), clean_answers.rows(STUDIES[0]))
    named = {(one["where"], one["kind"]) for one in found.report["problems"]}
    assert any(where == victim.member.name and kind in slug for where, slug in named)
    assert not (spoilt / "intruded").exists()


MANIFESTS: dict[str, Callable[[dict], str]] = {
    "of a newer format": lambda document: json.dumps(document | {"format_version": 2, "novelty": {}}),
    "with an unknown field": lambda document: json.dumps(document | {"novelty": 1}),
    "cut": lambda document: json.dumps(document)[:-200],
    "of another kit": lambda document: json.dumps(document | {"format": "other"}),
    "of nothing": lambda document: "",
    "of a list": lambda document: "[]",
    "with a NaN among the priors": lambda document: json.dumps(
        document | {"priors": {row: [float("nan"), 0.5, 0.5] for row in ROWS}}
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_cannot_be_used_leaves_the_priors(
    name: str, clean_pair: Path, seeing: Path, tmp_path: Path
) -> None:
    spoilt = seeing_package(seeing, tmp_path / "weights")
    path = spoilt / MANIFEST_FILE
    path.write_text(MANIFESTS[name](json.loads(path.read_text())))
    found = run_here(clean_pair, spoilt, tmp_path / "out")
    assert found.report["problem_counts"] == {"no-manifest": 1}
    assert found.report["fallbacks"]["never_graded"] == len(STUDIES)
