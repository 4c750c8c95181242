"""Architectures, one a file: every module of this folder that defines a class `Net`, under its file name.

`Net` takes keyword arguments only: `inputs` (slices of each view), `size_px`, `targets` (how many), `pretrained`, for
graders also `backbone`, where it names it `target_names`, where it may have auxiliary heads (parts/auxiliary.py)
`auxiliary`, and the options of the recipe.  It is called as
`net(*views, present)` with one (B, slices, size_px, size_px) tensor a view and (B, views) of 0 and 1, and answers

* a grader: logits (B, targets, 3);
* a localiser: points (B, targets, 4) = slice, row, column in pixels of the first view, and a confidence in [0, 1].
  It has `outputs(*views, present)`, from which the loss is computed, and `points(outputs, present)`; `losses` names
  those of training/fitting that fit it.

Every `Net` can be traced by torch.jit.trace, at any batch size, and answers for missing views (present = 0) as well.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from training.networks.parts import torchvision_shim
from training.networks.parts.errors import NetworkError
from training.networks.parts.published_weights import Offer, listed
from training.recipe_schema.schema import MemberRecipe

torchvision_shim.apply()  # before any architecture imports timm

__all__ = ["FOLDER", "NetworkError", "build", "check", "for_member", "names", "options_of"]

FOLDER = Path(__file__).parent
# Arguments that are not options of a recipe.
GIVEN = ("inputs", "size_px", "targets", "target_names", "backbone", "auxiliary")


def _modules(folder: Path) -> dict[str, str]:
    """Architecture name → dotted module path below the folder.  Raises NetworkError for a duplicate name."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        if not re.search(r"^class Net\b", path.read_text(encoding="utf-8"), re.MULTILINE):
            continue
        module = ".".join(path.relative_to(folder).with_suffix("").parts)
        if path.stem in found:
            raise NetworkError(f"two architectures are named '{path.stem}': {found[path.stem]} and {module}")
        found[path.stem] = module
    return found


def names() -> tuple[str, ...]:
    """The architectures that exist."""
    return tuple(_modules(FOLDER))


def build(name: str, **arguments: Any) -> nn.Module:
    """A new network.  Raises NetworkError, with the known ones, for an unknown name or option."""
    known = options_of(name)
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise NetworkError(f"'{name}' has no option {', '.join(unknown)}; it has: {', '.join(known)}")
    net: nn.Module = _net_class(name)(**arguments)
    return net


def options_of(name: str) -> tuple[str, ...]:
    """The arguments of an architecture.  Raises NetworkError, with the known ones, for an unknown name."""
    return tuple(inspect.signature(_net_class(name)).parameters)


def _net_class(name: str) -> Any:
    modules = _modules(FOLDER)
    if name not in modules:
        raise NetworkError(f"there is no architecture '{name}'; there are: {', '.join(modules)}")
    return importlib.import_module(f"{__name__}.{modules[name]}").Net


def check(
    recipe: MemberRecipe, stage: str = "", backbone: str = "", grader_losses: Sequence[str] | None = None
) -> list[Offer]:
    """Build a member's network without weights; returns the published weights that it would start from.

    `stage`, `backbone`: dotted paths of the parts of a recipe that describe it, for the message.  `grader_losses`:
    losses that fit every grader without `losses` of its own; None = not checked for these.
    Raises NetworkError for what cannot be fitted.
    """
    fitting = recipe.fitting
    inside = f"{stage}.fitting" if stage else "fitting"

    def refuse(place: str, reason: object) -> NetworkError:
        sentence, _, _ = str(reason).partition("\n")
        return NetworkError(f"{recipe.member.name}: {place}: {sentence}")

    places = _places_of_options(recipe, inside, backbone or "backbone")
    try:
        known_options = options_of(fitting.network.name)
    except NetworkError as error:
        raise refuse(f"{inside}.network.name", error) from error
    for place, reason in _wrong_options(recipe, places, known_options, inside):
        raise refuse(place, reason)
    try:
        with listed() as offers:
            net = for_member(recipe)
    except (NetworkError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise refuse(_place_of(str(error), recipe, places, inside, backbone or "backbone"), error) from error
    losses = getattr(net, "losses", grader_losses if recipe.member.role == "grader" else ())
    second = fitting.second_step
    for place, loss in [(inside, fitting.loss), *([(f"{inside}.second_step", second.loss)] if second else [])]:
        if losses is not None and loss not in losses:
            raise refuse(f"{place}.loss", f"{fitting.network.name} is fitted with {' or '.join(losses)}, not '{loss}'")
    modules = sorted({name.partition(".")[0] for name, _ in net.named_parameters()})
    for part in second.parts if second else ():
        if part not in modules:
            there = f"{fitting.network.name} has no part '{part}'; it has: {', '.join(modules)}"
            raise refuse(f"{inside}.second_step.parts", there)
    return offers


def _wrong_options(
    recipe: MemberRecipe, places: dict[str, str], known_options: Sequence[str], inside: str
) -> Iterator[tuple[str, str]]:
    """Dotted path and reason of each option, and of auxiliary heads, that the architecture does not have."""
    name = recipe.fitting.network.name
    for option, place in places.items():
        if option not in known_options:
            there = ", ".join(one for one in known_options if one not in GIVEN)
            yield place, f"'{name}' has no option {option}; it has: {there}"
    if recipe.fitting.auxiliary.heads and "auxiliary" not in known_options:
        there = ", ".join(one for one in names() if "auxiliary" in options_of(one))
        yield f"{inside}.auxiliary", f"{name} has no auxiliary heads; these have: {there}"


def _places_of_options(recipe: MemberRecipe, inside: str, backbone: str) -> dict[str, str]:
    """Option → its dotted path; options of a backbone override those of the network, as in for_member."""
    own = {option: f"{inside}.network.options.{option}" for option in recipe.fitting.network.options}
    return own | {
        option: f"{backbone}.options.{option}" for option in (recipe.backbone.options if recipe.backbone else ())
    }


def _place_of(message: str, recipe: MemberRecipe, places: dict[str, str], inside: str, backbone: str) -> str:
    """The dotted path of the first option that a message names, or whose value it quotes."""
    values = recipe.fitting.network.options | (recipe.backbone.options if recipe.backbone else {})
    mentioned = {}
    for option, place in places.items():
        value = re.escape(str(values[option]).removeprefix("tu-"))
        if found := re.search(rf"\b{option}\b|'{value}'", message):
            mentioned[place] = found.start()
    if recipe.backbone is not None and (found := re.search(f"'{re.escape(recipe.backbone.timm)}'", message)):
        mentioned[f"{backbone}.timm"] = found.start()
    return min(mentioned, key=lambda place: mentioned[place]) if mentioned else f"{inside}.network"


def for_member(recipe: MemberRecipe, *, pretrained: bool = True) -> nn.Module:
    """The network of one member of a recipe; options of its backbone override those of the network.

    `pretrained=False`: without published weights, even if the recipe sets them, as other weights are loaded afterwards.
    """
    member, network = recipe.member, recipe.fitting.network
    sizes = {view.size_px for view in member.inputs}
    if len(sizes) > 1:
        raise NetworkError(f"the views of one network have one size_px, not {sorted(sizes)}")
    arguments = dict(network.options)
    if recipe.backbone is not None:
        arguments |= {
            "backbone": recipe.backbone.timm,
            "pretrained": recipe.backbone.pretrained,
            **recipe.backbone.options,
        }
    if not pretrained:
        arguments["pretrained"] = False
    inputs = tuple(view.slices.count for view in member.inputs)
    if "target_names" in options_of(network.name):
        arguments["target_names"] = member.targets
    if heads := recipe.fitting.auxiliary.heads:
        arguments["auxiliary"] = heads
    return build(network.name, inputs=inputs, size_px=sizes.pop(), targets=len(member.targets), **arguments)
