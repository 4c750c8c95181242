"""Packages of untrained networks to measure with, exported and packed as trained ones are."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.labels import LEVELS
from kernels.lumbar.manifest import Manifest, Provenance, Shape
from kernels.lumbar.networks.weights import golden_inputs
from kernels.lumbar.run.submission import replace_json
from kernels.lumbar.specs import Member
from training import networks
from training.fitting.export import export
from training.packaging.packs import pack
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import MemberRecipe
from training.runs import WEIGHTS, TrainedMember, route_of

SEED = 11
SETTLING_ROWS, SETTLING_ROUNDS = 4, 2
MOST_WORKERS = 12
EVERY_GROUP = {"spinal": 1.0, "foraminal": 1.0, "subarticular": 1.0}
CANALS = [f"spinal_canal_stenosis_{level}" for level in LEVELS]
IMAGES = {"series": "sagittal_t2", "slices": {"by": "middle", "count": 5}}
CROPS = {
    "series": "sagittal_t2",
    "centre": ["spinal_canal_stenosis"],
    "slices": {"by": "landmark", "count": 5},
    "size_mm": 50,
}


class NearTypicalPoints(nn.Module):
    """An untrained localiser whose points stay near typical places, so that graders are given crops of the image.

    Each number of its answer moves by at most `reach`, with the network's deviation from its usual answer.
    """

    points: Tensor
    usual: Tensor
    reach: Tensor

    def __init__(self, network: nn.Module, member: Member, usual: Tensor) -> None:
        super().__init__()
        self.network = network
        request = member.inputs[0]
        sizes = torch.tensor([float(request.slices.count), request.size_px, request.size_px, 1.0])
        self.register_buffer("points", typical_points(member))
        self.register_buffer("usual", usual)
        self.register_buffer("reach", 0.05 * sizes)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Points (B, K, 4)."""
        return self.points + self.reach * torch.tanh((self.network(*inputs) - self.usual) / self.reach)


def typical_points(member: Member) -> Tensor:
    """(K, 4): level below level along sagittal rows or axial slices, else in the middle; confidence 0.9."""
    request = member.inputs[0]
    found = []
    for target in member.targets:
        level = re.search(r"l\d_[ls]\d$", target)
        along = 0.3 + 0.1 * LEVELS.index(level.group()) if level else 0.5
        axial = request.series == "axial_t2"
        shares = (0.5 * along if axial else 0.25, 0.5 if axial else along, 0.5)
        sizes = (request.slices.count, request.size_px, request.size_px)
        middle = not level or request.slices.by == "middle"
        slice_at = (sizes[0] - 1) / 2 if middle else shares[0] * sizes[0]
        found.append((slice_at, shares[1] * sizes[1], shares[2] * sizes[2], 0.9))
    return torch.tensor(found)


def one_member(backbone: str, size_px: int) -> list[MemberRecipe]:
    """A grader of whole images, which needs no localiser."""
    return [_grader("whole", "study", {**IMAGES, "size_px": size_px}, CANALS, backbone, size_px)]


def two_members(backbone: str, size_px: int) -> list[MemberRecipe]:
    """A localiser, and a grader of crops at its points."""
    member = {"name": "bench_points", "role": "localiser", "unit": "study", "inputs": [{**IMAGES, "size_px": 128}]}
    fitting = _fitting("coordinates", "coordinate_smooth_l1", {"encoder": backbone, "pretrained": False})
    localiser = MemberRecipe.model_validate({"member": {**member, "targets": CANALS}, "fitting": fitting})
    crops = {**CROPS, "size_px": size_px}
    return [localiser, _grader("crops", "level", crops, ["spinal_canal_stenosis"], backbone, size_px)]


def _grader(
    name: str, unit: str, view: Mapping[str, Any], targets: Sequence[str], backbone: str, size_px: int
) -> MemberRecipe:
    member = {"name": f"bench_{name}", "role": "grader", "unit": unit, "inputs": [view], "targets": targets}
    return MemberRecipe.model_validate(
        {
            "member": {**member, "tta": ["mirror"]},
            "backbone": {"timm": backbone, "size_px": size_px, "learning_rate": 1e-3, "pretrained": False},
            "weight": EVERY_GROUP,
            "fitting": _fitting("split_gru", "weighted_cross_entropy", {"hidden": 64}),
        }
    )


def _fitting(network: str, loss: str, options: Mapping[str, Any]) -> dict[str, Any]:
    optimisation = {"epochs": 1, "learning_rate": 1e-3}
    return {"network": {"name": network, "options": options}, "loss": loss, "optimisation": optimisation}


def smoke_members(recipes: Sequence[str]) -> dict[str, list[MemberRecipe]]:
    """Recipe → all its networks in the smoke profile."""
    return {name: list(load_named(name, "smoke").members()) for name in recipes}


def make_package(folder: Path, routes: Mapping[str, Sequence[MemberRecipe]]) -> Path:
    """Export untrained networks in several processes and package them; a route for each group of members."""
    jobs = [(entry, route) for route, members in routes.items() for entry in members]
    workers = min(os.cpu_count() or 1, MOST_WORKERS, len(jobs))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        coming = [pool.submit(export_untrained, *job, folder / "exported" / job[0].member.name) for job in jobs]
        runs = [one.result() for one in tqdm(coming, unit="network", desc=f"package {folder.name}")]
    pairs = list(zip(jobs, runs, strict=True))
    write_package(folder, {route: [run for (_, its), run in pairs if its == route] for route in routes})
    return folder


def write_package(folder: Path, routes: Mapping[str, Sequence[TrainedMember]], shape: Shape | None = None) -> None:
    """Lay exported networks in packs with their manifest; a route for each group, of its own localisers."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = {one.member.name: one for one in pack([run for runs in routes.values() for run in runs], folder)}
    manifest = Manifest(
        name=folder.name,
        priors=public_priors(),
        shape=shape,
        artefacts=tuple(packed.values()),
        routes=tuple(
            route_of(route, [packed[one.artefact.member.name] for one in runs], [one.recipe for one in runs])
            for route, runs in routes.items()
        ),
    )
    replace_json(folder / "manifest.json", manifest.model_dump(mode="json"))


def export_untrained(entry: MemberRecipe, route: str, folder: Path) -> TrainedMember:
    """Export a network as initialised, but for the statistics of its normalising layers; no data or fold made it."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    network: nn.Module = networks.for_member(entry, pretrained=False)
    usual = settle(network, entry.member)
    if entry.member.role == "localiser":
        network = NearTypicalPoints(network, entry.member, usual)
    backbone = entry.backbone.timm if entry.backbone else ""
    made_by = {"network": entry.fitting.network.name, "backbone": backbone, "profile": "smoke", "torch_version": ""}
    nothing = {"fold": 0, "seed": SEED, "git_commit": "none", "data_fingerprint": "none"}
    provenance = Provenance.model_validate({"recipe": route, **made_by, **nothing})
    return TrainedMember(entry, export(network, entry, folder, provenance, SEED), folder / WEIGHTS)


def settle(network: nn.Module, member: Member) -> Tensor:
    """Give normalising layers the statistics of noise, as without them no answer depends on the image.

    Returns the mean answer: (K, 4) of a localiser, (K, 3) of a grader.
    """
    norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for part in norms:
        part.reset_running_stats()
        part.momentum = None  # the mean of all batches
    with torch.no_grad():
        network.train()
        for number in range(SETTLING_ROUNDS):
            network(*golden_inputs(member, SEED + number, SETTLING_ROWS))
        network.eval()
        answer: Tensor = network(*golden_inputs(member, SEED, SETTLING_ROWS))
    return answer.mean(0)
