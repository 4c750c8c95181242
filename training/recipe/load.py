"""The recipes of this project, one YAML a system, and how command lines name them or one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.recipe.schema import Profile, Recipe, RecipeError

RECIPES = Path(__file__).parent


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
