"""Tables of cases of which some run always, and the others behind `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from training.recipe_schema.schema import MemberRecipe


def every_nth(names: Iterable[str], step: int = 2) -> list[Any]:
    """Parameters of which each `step`-th is quick, the first among them; the rest are slow."""
    return [pytest.param(name, marks=pytest.mark.slow if number % step else ()) for number, name in enumerate(names)]


def one_of_each_kind(recipes: Sequence[MemberRecipe]) -> list[MemberRecipe]:
    """The first network of each architecture and number of views."""
    kinds: dict[Any, MemberRecipe] = {}
    for recipe in recipes:
        kinds.setdefault((recipe.fitting.network.name, len(recipe.member.inputs)), recipe)
    return list(kinds.values())


def by_kind(recipes: Sequence[MemberRecipe]) -> list[Any]:
    """Parameters of which one of each kind is quick; the rest are slow."""
    quick = {one.member.name for one in one_of_each_kind(recipes)}
    return [
        pytest.param(one, marks=() if one.member.name in quick else pytest.mark.slow, id=one.member.name)
        for one in recipes
    ]
