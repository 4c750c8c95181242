"""Finished runs as training leaves them, of networks that take a moment to make, to test packaging and notebook."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.manifest import Provenance
from kernels.lumbar.run.submission import replace_json
from kernels.lumbar.specs import Member
from tests.support.anatomy.spines import spine_shape
from training.fitting.export import export
from training.recipe_schema.schema import MemberRecipe, Recipe
from training.runs import RunFolder

GOLDEN_SEED = 3


class TinyLocaliser(nn.Module):
    """Points in the middle slice, spread from top to bottom of the image; they move a little with the image."""

    def __init__(self, member: Member) -> None:
        super().__init__()
        request, count = member.inputs[0], len(member.targets)
        row = torch.linspace(0.3, 0.8, count) * request.size_px
        middle = torch.full((count,), (request.slices.count - 1) / 2)
        points = torch.stack([middle, row, torch.full((count,), request.size_px / 2), torch.full((count,), 0.9)], -1)
        self.register_buffer("points", points)
        self.register_buffer("direction", torch.tensor([0.0, 1.0, 1.0, 0.0]))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        move = torch.tanh(inputs[0].mean((1, 2, 3)))
        return self.points + move[:, None, None] * self.direction


class TinyGrader(nn.Module):
    """Logits (B, K, 3), linear in the mean of every view; a missing view counts as nothing."""

    def __init__(self, member: Member, seed: int) -> None:
        super().__init__()
        self.targets = len(member.targets)
        self.head = nn.Linear(len(member.inputs), 3 * self.targets)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=generator))
            self.head.bias.copy_(torch.randn(self.head.bias.shape, generator=generator))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        views, present = inputs[:-1], inputs[-1]
        means = torch.stack([view.mean((1, 2, 3)) for view in views], 1) * present
        return self.head(means).reshape(present.shape[0], self.targets, 3)


def write_runs(runs: Path, recipe: Recipe, folds: tuple[int, ...] = (0,), fingerprint: str = "none") -> None:
    """Write RUNS/<recipe>/ with a finished run of every member in some folds, and the priors.

    `fingerprint`: of the tables that they are said to be trained on.
    """
    torch.set_num_threads(1)
    folder = RunFolder(runs, recipe)
    for entry in recipe.members():
        for fold in folds:
            _write_run(folder.network_folder(entry.member.name, fold), recipe, entry, fold, fingerprint)
    replace_json(folder.priors, public_priors())
    replace_json(folder.shape, spine_shape().model_dump(mode="json"))


def _write_run(out: Path, recipe: Recipe, entry: MemberRecipe, fold: int, fingerprint: str) -> None:
    member = entry.member.model_copy(update={"name": f"{entry.member.name}_fold{fold}"})
    network = TinyLocaliser(member) if member.role == "localiser" else TinyGrader(member, fold)
    provenance = Provenance(
        recipe=recipe.name,
        network="tiny",
        backbone=entry.backbone.timm if entry.backbone else "none",
        fold=fold,
        seed=recipe.seed,
        profile=recipe.profile,
        torch_version=torch.__version__,
        git_commit="none",
        data_fingerprint=fingerprint,
        oof_score={"spinal": 0.5},
        resolved_recipe=entry.model_dump(mode="json"),
    )
    export(network, entry.model_copy(update={"member": member}), out, provenance, GOLDEN_SEED)
    replace_json(out / "done.json", {"name": member.name, "role": member.role, "weight": entry.weight})
