"""Finished runs of one recipe, an ensemble of them, and how they are packaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import build_dataset
from kernels.lumbar.labels import GROUPS
from training.recipe_schema.schema import Recipe
from training.runs import RunFolder


def package(runs: Path, out: Path, *options: str) -> int:
    """The exit code of packaging runs of the smoke profile."""
    return build_dataset.main(
        ["--runs", str(runs), "--out", str(out), "--profile", "smoke", "--owner", "ada", *options]
    )


def first_run(runs: Path, recipe: Recipe) -> Path:
    """The folder of a recipe's first network."""
    return RunFolder(runs, recipe).network_folder(recipe.members()[0].member.name, 0)


def members_of(recipe: Recipe) -> list[str]:
    """Its graders, as ensembles name them."""
    return [f"{recipe.name}/{one.pooled_as}" for one in recipe.members() if one.member.role == "grader"]


def found_ensemble(recipe: Recipe, **changes: Any) -> dict[str, Any]:
    """What a search may write: the third grader and the one of all conditions."""
    names = members_of(recipe)
    none = dict.fromkeys(GROUPS, 0.0)
    content = {
        "average": "probabilities",
        "weights": {names[2]: none | {"subarticular": 1}, names[3]: none | {"spinal": 0.5, "foraminal": 1}},
        "multipliers": {"spinal": [1, 2, 4], "foraminal": [1, 1, 1], "subarticular": [1, 1, 1]},
        "order": [names[2], names[3]],
        "fitted_score": 0.4,
    }
    return content | changes
