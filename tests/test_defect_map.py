"""Pages that name tests, the map of defects and the table of the write-ups' statements: all of these tests exist."""

from __future__ import annotations

import re

import pytest

from tests.support import ROOT


@pytest.mark.parametrize("page", ["tests/README.md", "training/recipes/PAPERS.md"])
def test_every_test_that_the_map_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)(?:\.py)?(?:::(\w+))?`", text)
    assert len(named) > 40
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    lost = [f"{file}::{test}" for file, test in named if test and f"def {test}(" not in sources.get(file, "")]
    assert not lost and {file for file, _ in named} <= sources.keys()
