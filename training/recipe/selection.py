"""What a command line asks for: data, recipes, and which of their networks and folds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.recipe.schema import MemberRecipe, Recipe, RecipeError


def members_of(recipe: Recipe, localisers_only: bool) -> list[MemberRecipe]:
    """The networks of a recipe that are trained, localisers first."""
    return [one for one in recipe.members() if one.member.role == "localiser" or not localisers_only]


def folds_of(recipe: Recipe, asked: Sequence[int]) -> list[int]:
    """The folds to train: those asked for, else the recipe's own.  Raises RecipeError for one that it has not."""
    wrong = [fold for fold in asked if fold not in range(recipe.folds)]
    if wrong:
        raise RecipeError(f"{recipe.name} has folds 0 to {recipe.folds - 1}; {wrong} is none of them")
    return list(dict.fromkeys(asked) or recipe.train_folds or range(recipe.folds))


def add_order(parser: argparse.ArgumentParser) -> None:
    """The options that say what is trained on what, for all commands that train it."""
    parser.add_argument("--data", type=Path, required=True, help="a folder in the competition's layout")
    parser.add_argument("--runs", type=Path, required=True, help="where weights, curves and scores go")
    parser.add_argument("--recipes", nargs="*", default=[], help="names of training/recipes, or YAML files")
    parser.add_argument("--profile", choices=["smoke", "bench", "full"], default="full")
    parser.add_argument("--folds", nargs="*", type=int, default=[], help="default: those of the recipe")
    parser.add_argument("--coordinates", type=Path, help="a folder of published coordinates, for better points")
    parser.add_argument("--labels", type=Path, help="RUNS/<recipe>/<profile> of an earlier run, to correct labels by")
    parser.add_argument("--localisers-only", action="store_true", help="leave the graders out")
    parser.add_argument("--cache", type=Path, help="where crops are kept; default: RUNS/cache")
