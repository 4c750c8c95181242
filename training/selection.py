"""Which networks and folds of a recipe a command line asks for."""

from __future__ import annotations

from collections.abc import Sequence

from training.recipe import MemberRecipe, Recipe, RecipeError


def members_of(recipe: Recipe, localisers_only: bool) -> list[MemberRecipe]:
    """The networks of a recipe that are trained, localisers first."""
    return [one for one in recipe.members() if one.member.role == "localiser" or not localisers_only]


def folds_of(recipe: Recipe, asked: Sequence[int]) -> list[int]:
    """The folds to train: those asked for, else the recipe's own.  Raises RecipeError for one that it has not."""
    wrong = [fold for fold in asked if fold not in range(recipe.folds)]
    if wrong:
        raise RecipeError(f"{recipe.name} has folds 0 to {recipe.folds - 1}; {wrong} is none of them")
    return list(asked or recipe.train_folds or range(recipe.folds))
