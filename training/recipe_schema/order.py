"""Which networks of a recipe are trained before which.

A localiser whose views start from landmarks, and that is trained with the errors of these, comes after the localisers
that find them; one that starts from the weights of another one comes after that.
"""

from __future__ import annotations

from graphlib import TopologicalSorter

from kernels.lumbar.specs import waves
from training.recipe_schema.schema import MemberRecipe, Recipe


def sources_of(recipe: Recipe, entry: MemberRecipe) -> list[MemberRecipe]:
    """The localisers that find the landmarks that a localiser's views start from, and those that these start from.

    Only those of its own routes, where it is in one.  None for graders, which follow all localisers; and none for a
    localiser that draws no errors: it is trained on annotated landmarks alone.
    """
    if entry.member.role != "localiser" or not entry.draws_errors:
        return []
    routes = set(recipe.routes_of(entry.member.name)[1:]) or {""}
    others = (recipe.localiser(name) for name in recipe.localisers)
    together = [one for one in others if routes & set(recipe.routes_of(one.member.name))]
    # As the kernel runs them.
    earlier = list[MemberRecipe]()
    for wave in waves(together):
        if entry in wave:
            break
        earlier += wave
    wanted, found = set(entry.member.needed), list[MemberRecipe]()
    for one in reversed(earlier):
        if wanted & set(one.member.answered):
            found.insert(0, one)
            wanted |= one.member.needed
    return found


def starts_from(recipe: Recipe, entry: MemberRecipe) -> MemberRecipe | None:
    """The localiser from whose weights a network starts; None where its recipe names none."""
    name = entry.fitting.start
    return None if name is None else recipe.localiser(name)


def localisers_in_order(recipe: Recipe) -> list[MemberRecipe]:
    """All localisers, each after those that are trained before it.  Raises graphlib.CycleError."""
    entries = {one.member.name: one for one in map(recipe.localiser, recipe.localisers)}
    before = {name: [one.member.name for one in trained_before(recipe, entry)] for name, entry in entries.items()}
    return [entries[name] for name in TopologicalSorter(before).static_order()]


def trained_before(recipe: Recipe, entry: MemberRecipe) -> list[MemberRecipe]:
    """The localisers that are trained before a localiser."""
    start = starts_from(recipe, entry)
    return [*sources_of(recipe, entry), *([] if start is None else [start])]
