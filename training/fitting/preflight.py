"""Checks of the networks, losses and published weights that recipes name, before hours of decoding and training."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from training import networks
from training.fitting.losses import LOSSES
from training.networks.parts import published_weights
from training.networks.parts.published_weights import Offer
from training.recipe_schema.order import starts_from
from training.recipe_schema.schema import MemberRecipe, Recipe, RecipeError

# Checks that take longer show a progress bar.
PROGRESS_AFTER_S = 5


def check_recipes(recipes: Sequence[Recipe], localisers_only: bool = False) -> None:
    """Check names, options, losses, parts and published weights.  Raises NetworkError, RecipeError."""
    entries = [(recipe, entry) for recipe in recipes for entry in recipe.members()]
    offers: list[tuple[MemberRecipe, list[Offer]]] = []
    grader_losses = [name for name, loss in LOSSES.items() if loss.any_grader]
    wanted = [pair for pair in entries if pair[1].member.role == "localiser" or not localisers_only]
    for recipe, entry in tqdm(wanted, desc="checking networks", unit="network", delay=PROGRESS_AFTER_S):
        stage, backbone = recipe.place_of(entry.member.name)
        check_losses(entry, stage)
        check_start_of(recipe, entry, stage)
        offers.append((entry, networks.check(entry, stage, backbone, grader_losses)))
    check_published(offers)


def check_start_of(recipe: Recipe, entry: MemberRecipe, stage: str) -> None:
    """Raises RecipeError where a network and the one from whose weights it starts differ in their tensors."""
    other = starts_from(recipe, entry)
    if other is None:
        return
    own, its = (networks.for_member(one, pretrained=False).state_dict() for one in (entry, other))
    shapes = ({name: tensor.shape for name, tensor in state.items()} for state in (own, its))
    if differing := sorted(name for name, _ in set.symmetric_difference(*(set(one.items()) for one in shapes))):
        raise RecipeError(
            f"{entry.member.name}: {stage}.fitting.start: {differing[0]} differs from that of {other.member.name}: "
            "give both the same options and as many targets"
        )


def check_published(wanted: Sequence[tuple[MemberRecipe, Sequence[Offer]]]) -> None:
    """Load the published weights that are on this machine, and download the others.  Raises NetworkError."""
    missing = [one for _, offers in wanted for one in offers if published_weights.local_file(one) is None]
    loaded: set[Offer] = set()
    for entry, offers in wanted:
        if not loaded.issuperset(offers) and not set(missing) & set(offers):
            networks.for_member(entry)
            loaded |= set(offers)
    published_weights.download(list(dict.fromkeys(missing)))


def check_losses(recipe: MemberRecipe, stage: str = "") -> None:
    """Raises RecipeError, with the dotted path below that of the stage, for an unknown loss or an option it lacks."""
    fitting, second = recipe.fitting, recipe.fitting.second_step
    inside = f"{stage}.fitting" if stage else "fitting"
    steps = [(inside, fitting.loss, fitting.loss_options)]
    steps += [(f"{inside}.second_step", second.loss, second.loss_options)] if second else []
    for place, name, options in steps:
        if name not in LOSSES:
            reason = f"loss: there is no loss '{name}'; there are: {', '.join(LOSSES)}"
            raise RecipeError(f"{recipe.member.name}: {place}.{reason}")
        known = LOSSES[name].options
        if unknown := [option for option in options if option not in known]:
            there = f"it has: {', '.join(known)}" if known else "it has none"
            reason = f"loss_options.{unknown[0]}: {name} has no such option; {there}"
            raise RecipeError(f"{recipe.member.name}: {place}.{reason}")
