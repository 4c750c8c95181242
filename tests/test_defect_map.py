"""Pages that name tests, the map of defects and the table of the write-ups' statements: all of these tests exist."""

from __future__ import annotations

import re

import pytest

from tests.support import ROOT
from training.recipe_schema.load import load_named


@pytest.mark.parametrize("page", ["tests/README.md", "training/recipes/PAPERS.md"])
def test_every_test_that_the_map_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)(?:\.py)?(?:::(\w+))?`", text)
    assert len(named) > 40
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    lost = [f"{file}::{test}" for file, test in named if test and f"def {test}(" not in sources.get(file, "")]
    assert not lost and {file for file, _ in named} <= sources.keys()


def test_every_network_that_the_table_of_statements_names_is_one_of_its_recipe():
    _, *sections = re.split(
        r"^## ", (ROOT / "training/recipes/PAPERS.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    names = [re.findall(r"· `(\w+)`", section)[0] for section in sections]
    assert len(names) == 7
    for name, section in zip(names, sections, strict=True):
        recipe = load_named(name, "full")
        named = set(re.findall(r"`(localisers|graders)\.(\w+)(?=[`.])", section))
        there = {(stage, one) for stage in ("localisers", "graders") for one in getattr(recipe, stage)}
        assert named <= there, name
