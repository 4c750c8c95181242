"""Architectures, one a file: every module of this folder that defines a class `Net`, under its file name.

`Net` takes keyword arguments only: `inputs` (slices of each view), `size_px`, `targets` (how many), `pretrained`, for
graders also `backbone`, where it names it `target_names`, and the options of the recipe.  It is called as
`net(*views, present)` with one (B, slices, size_px, size_px) tensor a view and (B, views) of 0 and 1, and answers

* a grader: logits (B, targets, 3);
* a localiser: points (B, targets, 4) = slice, row, column in pixels of the first view, and a confidence in [0, 1].
  For its loss it has `outputs(*views, present)`, what the loss is computed from, and `points(outputs, present)`;
  `losses` names those of training/fitting that it is fitted with.

Every `Net` can be traced by torch.jit.trace, at any batch size, and answers for missing views (present = 0) as well.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from torch import nn

from training import torchvision_shim
from training.recipe import MemberRecipe

torchvision_shim.apply()  # before any architecture imports timm

FOLDER = Path(__file__).parent
GRADER_LOSSES = ("cross_entropy", "weighted_cross_entropy", "weighted_bce", "competition")


class NetworkError(Exception):
    """A network that a recipe asks for and that cannot be made, with what could."""


def _modules(folder: Path) -> dict[str, str]:
    """Architecture name → dotted module path below the folder.  Raises NetworkError for a name that is used twice."""
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
    """A new network.  Raises NetworkError, with what there is, for an unknown name or option."""
    known = options_of(name)
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise NetworkError(f"'{name}' has no option {', '.join(unknown)}; it has: {', '.join(known)}")
    net: nn.Module = _net_class(name)(**arguments)
    return net


def options_of(name: str) -> tuple[str, ...]:
    """The arguments that an architecture takes.  Raises NetworkError, with what there is, for an unknown name."""
    return tuple(inspect.signature(_net_class(name)).parameters)


def _net_class(name: str) -> Any:
    modules = _modules(FOLDER)
    if name not in modules:
        raise NetworkError(f"there is no architecture '{name}'; there are: {', '.join(modules)}")
    return importlib.import_module(f"{__name__}.{modules[name]}").Net


def check(recipe: MemberRecipe) -> None:
    """Make a member's network, without weights, and let it go.  Raises NetworkError for what cannot be fitted."""
    member, fitting = recipe.member, recipe.fitting
    default = () if member.role == "localiser" else GRADER_LOSSES
    known = getattr(for_member(recipe, pretrained=False), "losses", default)
    for loss in [fitting.loss, *(step.loss for step in [fitting.second_step] if step)]:
        if loss not in known:
            raise NetworkError(
                f"{member.name}: {fitting.network.name} is fitted with {' or '.join(known)}, not '{loss}'"
            )


def for_member(recipe: MemberRecipe, *, pretrained: bool = True) -> nn.Module:
    """The network of one member of a recipe.

    `pretrained=False` makes it without looking for published weights, whatever the recipe says: its weights are loaded
    afterwards.  Options of a backbone override those of the network.
    """
    member, network = recipe.member, recipe.fitting.network
    sizes = {view.size_px for view in member.inputs}
    if len(sizes) > 1:
        raise NetworkError(f"{member.name}: the views of one network have one size_px, not {sorted(sizes)}")
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
    return build(network.name, inputs=inputs, size_px=sizes.pop(), targets=len(member.targets), **arguments)
