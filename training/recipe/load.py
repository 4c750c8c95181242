"""The recipes of this project, one YAML a system, and how command lines name them or one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from training.recipe.consistency import problems_of
from training.recipe.messages import listed, told
from training.recipe.schema import Profile, Recipe, RecipeError

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def names_of(given: Sequence[str]) -> list[str]:
    """The recipes that a command line names, with spaces or commas between; without any, all of this project."""
    named = [name for one in given for name in ([one] if Path(one).is_file() else one.replace(",", " ").split())]
    return named or sorted(path.stem for path in RECIPES.glob("*.yaml"))


def path_of(name: str) -> Path:
    """Where a recipe lies that is named, or given by the path of its YAML file."""
    return Path(name) if name.endswith(".yaml") else RECIPES / f"{name}.yaml"


def load_named(name: str, profile: Profile) -> Recipe:
    """A recipe of this project by its name, or any by the path of its YAML file.  Raises RecipeError."""
    path = path_of(name)
    if not path.is_file():
        known = " ".join(sorted(other.stem for other in RECIPES.glob("*.yaml")))
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
    try:
        recipe = Recipe.model_validate(resolved)
    except ValidationError as error:
        raise RecipeError(listed(path, told(error))) from error
    if problems := problems_of(recipe):
        raise RecipeError(listed(path, problems))
    return recipe
