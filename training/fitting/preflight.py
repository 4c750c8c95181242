"""What recipes ask of networks and losses, tried before hours of decoding and training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from training import networks
from training.fitting.losses.coordinate_losses import coordinate_smooth_l1
from training.fitting.losses.grade_losses import valid_slices_bce
from training.fitting.losses.map_losses import heat_and_pointer_bce
from training.fitting.losses.slice_losses import level_classes, level_distance
from training.networks.parts import published_weights
from training.networks.parts.published_weights import Offer
from training.recipe.fitting import Loss
from training.recipe.schema import MemberRecipe, Recipe, RecipeError

# What takes longer says how far it is.
SILENT_S = 5

# The losses that are called with the options of a recipe, and the arguments that they have from elsewhere.
WITH_OPTIONS: dict[Loss, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "coordinate_smooth_l1": (coordinate_smooth_l1, ("shape", "known", "covered")),
    "heat_and_pointer_bce": (heat_and_pointer_bce, ("sigma_px", "foreground")),
    "level_classes": (level_classes, ()),
    "level_distance": (level_distance, ()),
    "valid_slices_bce": (valid_slices_bce, ()),
}


def check_recipes(recipes: Sequence[Recipe], localisers_only: bool = False) -> None:
    """Find wrong names, options, losses, parts and published weights.  Raises NetworkError, RecipeError."""
    entries = [(recipe, entry) for recipe in recipes for entry in recipe.members()]
    offers: list[tuple[MemberRecipe, list[Offer]]] = []
    wanted = [pair for pair in entries if pair[1].member.role == "localiser" or not localisers_only]
    for recipe, entry in tqdm(wanted, desc="checking networks", unit="network", delay=SILENT_S):
        stage, backbone = recipe.place_of(entry.member.name)
        check_loss_options(entry, stage)
        offers.append((entry, networks.check(entry, stage, backbone)))
    check_published(offers)


def check_published(wanted: Sequence[tuple[MemberRecipe, Sequence[Offer]]]) -> None:
    """Read the published weights that are here, and ask the network for the others.  Raises NetworkError."""
    missing: list[Offer] = []
    read: set[Offer] = set()
    for entry, offers in wanted:
        missing += [one for one in offers if one not in missing and published_weights.here(one) is None]
        if not read.issuperset(offers) and not set(missing) & set(offers):
            networks.for_member(entry)
            read |= set(offers)
    published_weights.reachable(missing)


def options_of(loss: Loss) -> tuple[str, ...]:
    """The names that `loss_options` may have for a loss."""
    if loss not in WITH_OPTIONS:
        return ()
    function, given = WITH_OPTIONS[loss]
    arguments = inspect.signature(function).parameters.values()
    return tuple(one.name for one in arguments if one.kind is one.KEYWORD_ONLY and one.name not in given)


def check_loss_options(recipe: MemberRecipe, stage: str = "") -> None:
    """Raises RecipeError, with the dotted path below that of the stage, for an option that the loss does not take."""
    fitting, second = recipe.fitting, recipe.fitting.second_step
    inside = f"{stage}.fitting" if stage else "fitting"
    steps = [(inside, fitting.loss, fitting.loss_options)]
    steps += [(f"{inside}.second_step", second.loss, second.loss_options)] if second else []
    for place, loss, options in steps:
        known = options_of(loss)
        for option in options:
            if option not in known:
                there = f"it has: {', '.join(known)}" if known else "it has none"
                raise RecipeError(
                    f"{recipe.member.name}: {place}.loss_options.{option}: {loss} has no such option; {there}"
                )
