"""The lock files hold one tested version of everything that is asked for, and say nothing of where they were made."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT

LOCK, IMAGE_LOCK = ROOT / "requirements.lock", ROOT / "tests" / "image-requirements.lock"


def locked(path: Path) -> dict[str, list[Requirement]]:
    """Name → its lines in a lock file."""
    found: dict[str, list[Requirement]] = {}
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            one = Requirement(line)
            found.setdefault(canonicalize_name(one.name), []).append(one)
    return found


def asked_by_the_project() -> list[str]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = content["project"]
    extras = [one for its in project["optional-dependencies"].values() for one in its]
    return [*project["dependencies"], *extras, *content["build-system"]["requires"]]


def asked_for_the_image() -> list[str]:
    lines = (ROOT / "tests" / "image-requirements.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


@pytest.mark.parametrize(("path", "asked"), [(LOCK, asked_by_the_project()), (IMAGE_LOCK, asked_for_the_image())])
def test_all_that_is_asked_for_is_locked_in_its_range(path, asked):
    pins = locked(path)
    for text in asked:
        one = Requirement(text)
        (pin,) = pins[canonicalize_name(one.name)]
        (version,) = (specifier.version for specifier in pin.specifier)
        assert one.specifier.contains(version), f"{text} does not allow {version}: run `make lock`"
        assert pin.marker is None, f"{one.name} is locked for some machines only"


@pytest.mark.parametrize("path", [LOCK, IMAGE_LOCK])
def test_a_lock_holds_exact_versions_and_names_no_machine(path):
    for lines in locked(path).values():
        assert all(re.fullmatch(r"==[\w.+!]+", str(one.specifier)) for one in lines), lines
        assert len(lines) == 1 or all(one.marker for one in lines), lines
    text = path.read_text()
    assert "make lock" in text and not re.search(r"://|--|\bfile:|@ ", text)
