"""The weights of a finished network as the state that another training begins with (START=, `start` of a recipe)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kernels.lumbar.networks.loading import quiet_torchscript
from training import networks
from training.fitting import FitError
from training.networks.parts.auxiliary import without_heads
from training.recipe_schema.load import members_of
from training.recipe_schema.schema import MemberRecipe, Recipe
from training.runs import RunsError
from training.start import StartNetwork, find_start, names_of_networks, start_networks


def check_start(
    recipes: Sequence[Recipe], folds: Sequence[Sequence[int]], start: Path | None, localisers_only: bool = False
) -> None:
    """Whether some network of each recipe has its name in START, and its shapes.  Raises RunsError, FitError."""
    if not (there := start_networks(start)):
        return
    for recipe, its_folds in zip(recipes, folds, strict=True):
        entries = members_of(recipe, localisers_only)
        found = [(entry, find_start(there, recipe, entry, its_folds[0])) for entry in entries]
        if not any(one for _, one in found):
            own = ", ".join(entry.member.name.removeprefix(f"{recipe.name}_") for entry in entries)
            names = f"START={start} has {names_of_networks(there)}"
            raise RunsError(f"{names}, and no network of {recipe.name} is named so ({own}): name another START=")
        for entry, one in found:
            if one is not None:
                start_state(entry, one)


def start_state(recipe: MemberRecipe, found: StartNetwork) -> dict[str, Tensor]:
    """The state of the recipe's network with all weights of another one of the same shapes.

    Raises FitError, which names what differs: a network of which a part begins anew is nothing that either promises.
    """
    name, made = recipe.member.name, found.artefact.provenance
    source = f"{found.artefact.member.name} of {found.key}={found.start}"
    remedy = f"begin from a network of the same architecture, options and number of slices, or leave {found.key} out"
    if made.network != recipe.fitting.network.name:
        raise FitError(f"{name} is a {recipe.fitting.network.name}, and {source} is a {made.network}: {remedy}")
    net = without_heads(networks.for_member(recipe, pretrained=False))  # as exported; heads begin anew
    saved = _saved(found)
    ours: dict[str, tuple[str, Tensor]] = {}
    for kind, tensors in (("parameter", net.named_parameters()), ("buffer", net.named_buffers())):
        ours |= {f"{kind}{number}": pair for number, pair in enumerate(tensors)}
    if saved.keys() != ours.keys():  # of an export that kept the network's own names
        ours = {own: (own, tensor) for own, tensor in ours.values()}
    for key, (own, tensor) in ours.items():
        if key in saved and saved[key].shape != tensor.shape:
            shapes = f"{_text(tensor)} here and {_text(saved[key])}"
            raise FitError(f"{name}: {own} is {shapes} in {source}: {remedy}")
    if missing := ours.keys() ^ saved.keys():
        count = f"{len(saved)} tensors, and {len(ours)} here"
        raise FitError(f"{name}: {source} has {count} ({len(missing)} have no partner): {remedy}")
    of_tensor = {id(tensor): saved[key].to(tensor.dtype) for key, (_, tensor) in ours.items()}
    # By the tensor and not by its name, as shared weights have several.
    return {own: of_tensor[id(tensor)] for own, tensor in net.state_dict(keep_vars=True).items()}


def _text(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "one number"


def _saved(found: StartNetwork) -> dict[str, Tensor]:
    """The tensors of its file by their names there."""
    weights = found.artefact.weights
    try:
        with found.file.open("rb") as file:
            file.seek(weights.offset)
            content = file.read(weights.bytes)
    except OSError as error:
        raise FitError(f"{found.file} cannot be read ({error.strerror}): name another {found.key}=") from error
    if hashlib.sha256(content).hexdigest() != weights.sha256:
        raise FitError(f"{found.file} does not hold the weights that its record names: make it again")
    with quiet_torchscript():
        module: nn.Module = torch.jit.load(io.BytesIO(content), map_location="cpu")
    return {name: tensor.detach() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
