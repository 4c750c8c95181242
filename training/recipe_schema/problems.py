"""Problems of a recipe as lines with a dotted path and a reason: schema errors, and parts that do not fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from graphlib import CycleError
from pathlib import Path

from pydantic import ValidationError

from training.recipe_schema.order import localisers_in_order
from training.recipe_schema.schema import MemberRecipe, Recipe

# At most so many problems of a file are shown.
SHOWN = 5
PLAIN = {"extra_forbidden": "there is no such key", "missing": "is missing"}


def schema_problems(error: ValidationError) -> list[str]:
    """A line for each problem: the dotted path, if there is one, and the reason."""
    lines = []
    for one in error.errors():
        where = ".".join(str(part) for part in one["loc"])
        text = PLAIN.get(one["type"], one["msg"].removeprefix("Value error, "))
        lines += [f"{where}: {line}" if where else line for line in text.splitlines()]
    return lines


def message(path: Path, problems: list[str]) -> str:
    """One problem as a sentence, or the first SHOWN, a line each."""
    if len(problems) == 1:
        return f"{path}: {problems[0]}"
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "\n  ".join([f"{path} has {len(problems)} problems:", *problems[:SHOWN], *more])


def consistency_problems(recipe: Recipe) -> list[str]:
    """Parts that are valid by themselves and do not fit together."""
    whole = _wrong_backbones(recipe) or [*_wrong_members(recipe)] or _wrong_routes(recipe) or _wrong_starts(recipe)
    return [*_wrong_folds(recipe), *whole]


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
    """Unknown names; and two networks of one model in a fold, whose predictions would collide."""
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


def _wrong_routes(recipe: Recipe) -> list[str]:
    """Unknown names; and networks whose views start from landmarks that no localiser of their route finds."""
    problems = []
    for route, one in recipe.routes.items():
        for stage, names, known in (
            ("localisers", one.localisers, recipe.localisers.keys()),
            ("graders", one.graders, recipe.graders.keys()),
        ):
            place = f"routes.{route}.{stage}"
            unknown = [name for name in names if name not in known]
            problems += [f"{place}: '{name}' is none of the recipe's {stage}: {', '.join(known)}" for name in unknown]
    for route, one in {} if problems else recipe.routes.items():
        localisers = {name: recipe.localiser(name).member for name in one.localisers}
        graders = {name: recipe.grader(name, recipe.backbones_of(name)[0]).member for name in one.graders}
        found = {row for its in localisers.values() for row in its.answered}
        for name, member in (localisers | graders).items():
            if lacking := sorted(member.needed - found):
                problems.append(f"routes.{route}: {name} starts from {lacking[0]}, which none of its localisers finds")
    return problems


def _wrong_starts(recipe: Recipe) -> list[str]:
    """Localisers that start from one that does not exist, is of another architecture, or is trained after them."""
    problems = []
    for name, one in recipe.localisers.items():
        start, place, there = one.fitting.start, f"localisers.{name}.fitting.start", ", ".join(recipe.localisers)
        if start is None:
            continue
        if start not in recipe.localisers:
            problems.append(f"{place}: there is no localiser '{start}'; there are: {there}")
        elif (other := recipe.localisers[start].fitting.network.name) != one.fitting.network.name:
            problems.append(f"{place}: {name} is a {one.fitting.network.name}, and {start} is a {other}")
    try:
        if not problems:
            localisers_in_order(recipe)
    except CycleError as error:
        circle = " → ".join(name.removeprefix(f"{recipe.localisers_owner}_") for name in error.args[1])
        problems.append(
            f"localisers: each of {circle} is trained after the one before: change fitting.start, or draw no errors"
        )
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
                break  # the next backbone has the same problems


def _wrong_member(place: str, make: Callable[[], MemberRecipe], places: dict[str, str]) -> Iterator[str]:
    """Problems of one network of the recipe, among them a name that another one has."""
    try:
        recipe = make()
    except ValidationError as error:
        # Problems of `fitting` have a path; others concern the whole stage.
        yield from (f"{place}{'.' if one.startswith('fitting.') else ': '}{one}" for one in schema_problems(error))
        return
    yield from (f"{place}.{one}" for one in (*_undone_changes(recipe), *_untrained_flips(recipe), *_half_sided(recipe)))
    name = recipe.member.name
    if name in places:
        yield f"{place}: its network is named {name}, as that of {places[name]} is"
    places[name] = place


def _undone_changes(recipe: MemberRecipe) -> Iterator[str]:
    """Changes of brightness and contrast that the z-score of a view takes away again."""
    zscored = [one.series for one in recipe.member.inputs if one.normalisation == "zscore"]
    for change in ("brightness", "contrast"):
        if getattr(recipe.fitting.augmentation, change) and zscored:
            yield (
                f"fitting.augmentation.{change}: is undone by the normalisation zscore of the {zscored[0]} view: "
                "set normalisation: unit there"
            )


def _untrained_flips(recipe: MemberRecipe) -> Iterator[str]:
    """Test-time augmentation by a flip that the network never sees in training."""
    augmentation = recipe.fitting.augmentation
    axial = all(one.series == "axial_t2" for one in recipe.member.inputs)
    # A dihedral change flips columns and rows: left and right of axial slices alone, front and back of all.
    trained = {
        "mirror": augmentation.mirror or (augmentation.dihedral and axial),
        "front_to_back": augmentation.front_to_back or augmentation.dihedral,
    }
    for flip in recipe.member.tta:
        if not trained[flip]:
            yield f"tta: {flip} is not trained: set fitting.augmentation.{flip}, or leave it out"


def _half_sided(recipe: MemberRecipe) -> Iterator[str]:
    """Networks of one side that see some views of a right side as those of a left one, and others as they are."""
    shown = {one.mirror_right for one in recipe.member.inputs}
    if recipe.member.unit in ("side", "level_side") and len(shown) > 1:
        yield "inputs: mirror_right is set for some views only: a right side would be shown half mirrored"
