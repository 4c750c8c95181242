"""The networks of all recipes, and how to export one with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from kernels.lumbar.manifest import Artefact
from tests.support.networks.tiny_members import PROVENANCE
from training import networks
from training.fitting.export import export
from training.recipe_schema.load import RECIPES, load_named
from training.recipe_schema.schema import MemberRecipe


def members(profile: str, role: str) -> list[MemberRecipe]:
    recipes = [load_named(path.stem, profile) for path in sorted(RECIPES.glob("*.yaml"))]
    return [one for recipe in recipes for one in recipe.members() if one.member.role == role]


def export_untrained(recipe: MemberRecipe, folder: Path) -> Artefact:
    """Export proves parity at batch 1, 3 and 7."""
    torch.manual_seed(4)
    return export(networks.for_member(recipe, pretrained=False), recipe, folder, PROVENANCE, seed=7)
