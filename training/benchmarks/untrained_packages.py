"""What the kernel is measured with: packages of untrained networks, and the same studies under several numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.labels import LEVELS, ROWS, SERIES_KINDS, SEVERITIES
from kernels.lumbar.manifest import Manifest, Provenance, Shape
from kernels.lumbar.run.competition import read_series_table
from kernels.lumbar.run.submission import replace_json
from kernels.lumbar.specs import Member
from training import networks
from training.fitting.export import export
from training.packaging.packs import pack
from training.recipe.load import load_named
from training.recipe.schema import MemberRecipe
from training.runs import WEIGHTS, TrainedMember, route_of

SEED = 7
EVERY_GROUP = {"spinal": 1.0, "foraminal": 1.0, "subarticular": 1.0}
CANALS = [f"spinal_canal_stenosis_{level}" for level in LEVELS]
IMAGES = {"series": "sagittal_t2", "slices": {"by": "middle", "count": 5}}
CROPS = {
    "series": "sagittal_t2",
    "centre": ["spinal_canal_stenosis"],
    "slices": {"by": "landmark", "count": 5},
    "size_mm": 50,
}


class Pointing(nn.Module):
    """A localiser that does all its work, and then points at fixed places.

    What an untrained one says lies anywhere, and crops of nothing would cost nothing.
    """

    def __init__(self, network: nn.Module, member: Member) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("points", places(member))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Points (B, K, 4)."""
        return self.points + 0 * self.network(*inputs)


def places(member: Member) -> Tensor:
    """(K, 4): level below level along sagittal rows or axial slices, else in the middle; all of them rather sure."""
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
    localiser = MemberRecipe.model_validate(
        {
            "member": {
                "name": "bench_points",
                "role": "localiser",
                "unit": "study",
                "inputs": [{**IMAGES, "size_px": 128}],
                "targets": CANALS,
            },
            "fitting": _fitting("coordinates", "coordinate_smooth_l1", {"encoder": backbone, "pretrained": False}),
        }
    )
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


def make_package(folder: Path, routes: Mapping[str, Sequence[MemberRecipe]]) -> Path:
    """Export untrained networks and package them, a route for each group of members."""
    folder.mkdir(parents=True)
    runs: dict[str, list[TrainedMember]] = {}
    total = sum(len(members) for members in routes.values())
    with tqdm(total=total, unit="network", desc=f"package {folder.name}") as bar:
        for route, members in routes.items():
            runs[route] = []
            for entry in members:
                runs[route].append(_untrained(entry, route, folder / "exported" / entry.member.name))
                bar.update()
    write_package(folder, runs)
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


def many_members(recipes: Sequence[str]) -> dict[str, list[MemberRecipe]]:
    """All networks of some recipes in the smoke profile, by recipe."""
    return {name: list(load_named(name, "smoke").members()) for name in recipes}


def _untrained(entry: MemberRecipe, route: str, folder: Path) -> TrainedMember:
    torch.manual_seed(SEED)
    network: nn.Module = networks.for_member(entry, pretrained=False)
    if entry.member.role == "localiser":
        network = Pointing(network, entry.member)
    return export_as_trained(network, entry, route, folder, SEED)


def export_as_trained(network: nn.Module, entry: MemberRecipe, route: str, folder: Path, seed: int) -> TrainedMember:
    """Export a network by the exporter that trained ones pass; no data and no fold made it."""
    backbone = entry.backbone.timm if entry.backbone else ""
    made_by = {"network": entry.fitting.network.name, "backbone": backbone, "profile": "smoke", "torch_version": ""}
    nothing = {"fold": 0, "seed": seed, "git_commit": "none", "data_fingerprint": "none"}
    provenance = Provenance.model_validate({"recipe": route, **made_by, **nothing})
    return TrainedMember(entry, export(network, entry, folder, provenance, seed), folder / WEIGHTS)


@dataclass(frozen=True)
class Studies:
    """Some studies of a data set, of its test images or, where these are too few, of its training images."""

    images: Path
    series: Mapping[str, Sequence[tuple[str, str]]]
    split: str


def choose_studies(data: Path, count: int) -> Studies | None:
    """The first studies that are there; None where there is none."""
    found: list[Studies] = []
    for split in ("test", "train"):
        images, table = data / f"{split}_images", data / f"{split}_series_descriptions.csv"
        series = read_series_table(table).series if table.is_file() else {}
        there = sorted(study for study in series if (images / study).is_dir())[:count]
        found.append(Studies(images, {study: series[study] for study in there}, split))
    best = max(found, key=lambda one: len(one.series))
    return best if best.series else None


def link_studies(folder: Path, studies: Studies, times: int) -> int:
    """A competition's folder in which every study stands so many times, under new numbers; their count."""
    titles = {kind: title for title, kind in SERIES_KINDS.items()}
    (folder / "test_images").mkdir(parents=True)
    rows: list[tuple[int, str, str]] = []
    numbers = range(1, len(studies.series) * times + 1)
    for number, study in zip(numbers, [*studies.series] * times, strict=True):
        (folder / "test_images" / str(number)).symlink_to((studies.images / study).resolve())
        rows += [(number, series, titles[kind]) for series, kind in studies.series[study]]
    table = pd.DataFrame(rows, columns=["study_id", "series_id", "series_description"])
    table.to_csv(folder / "test_series_descriptions.csv", index=False)
    ids = [f"{number}_{row}" for number in numbers for row in ROWS]
    sample = pd.DataFrame({"row_id": ids, **dict.fromkeys(SEVERITIES, 1 / 3)})
    sample.to_csv(folder / "sample_submission.csv", index=False)
    return len(numbers)
