"""Reads recipes (one YAML a system) and selects what a command line names: recipes, networks, folds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kernels.profiles import PROFILES, Profile
from training.recipe_schema.problems import consistency_problems, message, schema_problems
from training.recipe_schema.schema import MemberRecipe, Recipe, RecipeError

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
# Below it: recipes of a part of the conditions, and the student; they are trained only where they are named.
PARTIAL = "partial"


def names_of(given: Sequence[str]) -> list[str]:
    """The recipes that a command line names, separated by spaces or commas; default: the whole systems of this
    project."""
    named = [name for one in given for name in ([one] if Path(one).is_file() else one.replace(",", " ").split())]
    return named or sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_files() -> dict[str, Path]:
    """Name → file of every recipe of this project, those of partial/ last."""
    return {path.stem: path for folder in (RECIPES, RECIPES / PARTIAL) for path in sorted(folder.glob("*.yaml"))}


def path_of(name: str) -> Path:
    """The YAML file of a recipe given by its name or its path."""
    return Path(name) if name.endswith(".yaml") else recipe_files().get(name, RECIPES / f"{name}.yaml")


def load_named(name: str, profile: Profile) -> Recipe:
    """A recipe of this project by its name, or any recipe by the path of its YAML file.  Raises RecipeError."""
    path = path_of(name)
    if not path.is_file():
        known = " ".join(recipe_files())
        raise RecipeError(
            f"there is no recipe '{name}'; several are named with spaces between, and there are: {known}; "
            "one of your own is named by the path of its .yaml file"
        )
    recipe = load_recipe(path, profile)
    if recipe.name != path.stem:
        raise RecipeError(f"{path}: name: is '{recipe.name}', and must be that of the file, '{path.stem}'")
    return recipe


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` with nested `changes`; a change to null removes the key."""
    merged = dict(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def load_recipe(path: Path, profile: Profile = "full") -> Recipe:
    """Read a recipe in one of its profiles.  Raises RecipeError with the dotted path of what is wrong."""
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: a recipe is a YAML mapping")
    profiles = document.pop("profiles", None) or {}
    if not isinstance(profiles, dict) or not isinstance(profiles.get(profile) or {}, dict):
        raise RecipeError(f"{path}: profiles: is a mapping of profile to what changes in it")
    if profile != "full" and profile not in profiles:
        raise RecipeError(f"{path}: has no profile '{profile}'; it has: full, {', '.join(profiles)}")
    resolved = merge(document, profiles.get(profile) or {})
    resolved["profile"] = profile
    shared = resolved.get("localisers_of")
    if shared is not None:
        resolved["localisers"] = _localisers_of(path, resolved, profile)
    try:
        recipe = Recipe.model_validate(resolved)
    except ValidationError as error:
        raise RecipeError(message(path, schema_problems(error))) from error
    if problems := consistency_problems(recipe):
        raise RecipeError(message(path, problems))
    return recipe


def _localisers_of(path: Path, resolved: dict[str, Any], profile: Profile) -> dict[str, Any]:
    """The localisers of the recipe that `localisers_of` names.  Raises RecipeError."""
    name = resolved["localisers_of"]
    if resolved.get("localisers"):
        raise RecipeError(message(path, [f"localisers: are those of {name} (localisers_of): leave them out"]))
    beside = path.with_name(f"{name}.yaml")  # one of the user's own
    owner = load_named(str(beside) if beside.is_file() else str(name), profile)
    if owner.localisers_of is not None:
        raise RecipeError(message(path, [f"localisers_of: {name} has none of its own: name {owner.localisers_of}"]))
    for key, its in (("folds", owner.folds), ("seed", owner.seed)):
        if resolved.get(key, Recipe.model_fields[key].default) != its:
            raise RecipeError(message(path, [f"{key}: is {its} in {name}, whose localisers these are"]))
    return dict(owner.localisers)


def members_of(recipe: Recipe, localisers_only: bool) -> list[MemberRecipe]:
    """The networks of a recipe to be trained, localisers first."""
    return [one for one in recipe.members() if one.member.role == "localiser" or not localisers_only]


def folds_of(recipe: Recipe, chosen: Sequence[int]) -> list[int]:
    """The folds to train: those chosen, else the recipe's own.  Raises RecipeError for an unknown one."""
    wrong = [fold for fold in chosen if fold not in range(recipe.folds)]
    if wrong:
        raise RecipeError(f"{recipe.name} has folds 0 to {recipe.folds - 1}; {wrong} is none of them")
    return list(dict.fromkeys(chosen) or recipe.train_folds or range(recipe.folds))


def add_order(parser: argparse.ArgumentParser) -> None:
    """Command-line options shared by all commands that train."""
    parser.add_argument("--data", type=Path, required=True, help="a folder in the competition's layout")
    parser.add_argument("--runs", type=Path, required=True, help="where weights, curves and scores go")
    parser.add_argument("--recipes", nargs="*", default=[], help="names of training/recipes, or YAML files")
    parser.add_argument("--profile", choices=PROFILES, default="full")
    parser.add_argument("--folds", nargs="*", type=int, default=[], help="default: those of the recipe")
    parser.add_argument("--coordinates", type=Path, help="a folder of published coordinates, for better points")
    parser.add_argument(
        "--labels", type=Path, help="RUNS/<recipe>/<profile> of an earlier run, or a table of make relabel"
    )
    parser.add_argument("--localisers-only", action="store_true", help="leave the graders out")
    parser.add_argument("--start", type=Path, help="run folder or package: networks begin from those of the same name")
    parser.add_argument("--cache", type=Path, help="where decoded studies are kept; default: RUNS/cache")
