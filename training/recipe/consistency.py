"""What does not fit together in a recipe whose parts are valid by themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from pydantic import ValidationError

from training.recipe.messages import told
from training.recipe.schema import MemberRecipe, Recipe


def problems_of(recipe: Recipe) -> list[str]:
    """What does not fit together in a recipe whose parts are valid by themselves."""
    return [*_wrong_folds(recipe), *(_wrong_backbones(recipe) or _wrong_members(recipe))]


def _wrong_folds(recipe: Recipe) -> list[str]:
    named = {"train_folds": recipe.train_folds}
    named |= {f"localisers.{name}.packed_folds": one.packed_folds for name, one in recipe.localisers.items()}
    named |= {f"backbones.{name}.folds": one.folds for name, one in recipe.backbones.items()}
    return [
        f"{place}: the recipe has folds 0 to {recipe.folds - 1}, and {fold} is none of them"
        for place, folds in named.items()
        for fold in sorted(set(folds or ()) - set(range(recipe.folds)))
    ]


def _wrong_backbones(recipe: Recipe) -> list[str]:
    """Names that are none; and two networks of one model in a fold, whose answers could not be told apart."""
    problems = []
    there = ", ".join(recipe.backbones)
    for grader in recipe.graders:
        place, names = f"graders.{grader}.backbones", recipe.backbones_of(grader)
        unknown = [name for name in names if name not in recipe.backbones]
        problems += [f"{place}: there is no backbone '{name}'; there are: {there}" for name in unknown]
        known = [recipe.backbones[name] for name in names if name not in unknown]
        folds = Counter(fold for backbone in known for fold in backbone.folds or ())
        problems += [f"{place}: {count} of them are for fold {fold}" for fold, count in folds.items() if count > 1]
    return problems


def _wrong_members(recipe: Recipe) -> Iterator[str]:
    places: dict[str, str] = {}
    for name in recipe.localisers:
        yield from _wrong_member(f"localisers.{name}", partial(recipe.localiser, name), places)
    for name in recipe.graders:
        for backbone in recipe.backbones_of(name):
            found = [*_wrong_member(f"graders.{name}", partial(recipe.grader, name, backbone), places)]
            yield from found
            if found:
                break  # the next backbone would say the same


def _wrong_member(place: str, make: Callable[[], MemberRecipe], places: dict[str, str]) -> Iterator[str]:
    """What is wrong with a network of the recipe, and whether another one has its name."""
    try:
        name = make().member.name
    except ValidationError as error:
        # Those of fitting name their path; others are of the whole stage.
        yield from (f"{place}{'.' if one.startswith('fitting.') else ': '}{one}" for one in told(error))
        return
    if name in places:
        yield f"{place}: its network is named {name}, as that of {places[name]} is"
    places[name] = place
