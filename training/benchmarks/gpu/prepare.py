"""What the other parts work on: a phantom of a fixed seed, and a package of all systems in the smoke profile."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from kernels.lumbar.networks.weights import golden_inputs
from kernels.lumbar.specs import Member
from training import networks
from training.benchmarks.untrained_packages import export_as_trained, places, write_package
from training.phantom.dataset import Options, make_dataset
from training.recipe.load import load_named, names_of
from training.recipe.schema import MemberRecipe
from training.runs import TrainedMember

from .setting import Record, Setting

SEED = 11
TRAIN, TEST, SCALE = 32, 12, 0.5
SMALL_TRAIN, SMALL_TEST, SMALL_SCALE = 10, 2, 0.25
SMALL_RECIPES = ("level_sequence",)
SETTLING_ROWS, SETTLING_ROUNDS = 4, 2
MOST_WORKERS = 12


class Leaning(nn.Module):
    """A localiser whose points stay near fixed places, so that untrained ones show graders images, and move as it says.

    Of a trained one nothing else is asked: each number may move by `reach`, as its own differs from the usual.
    """

    points: Tensor
    usual: Tensor
    reach: Tensor

    def __init__(self, network: nn.Module, member: Member, usual: Tensor) -> None:
        super().__init__()
        self.network = network
        request = member.inputs[0]
        sizes = torch.tensor([float(request.slices.count), request.size_px, request.size_px, 1.0])
        self.register_buffer("points", places(member))
        self.register_buffer("usual", usual)
        self.register_buffer("reach", 0.05 * sizes)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Points (B, K, 4)."""
        return self.points + self.reach * torch.tanh((self.network(*inputs) - self.usual) / self.reach)


def make_data(setting: Setting, record: Record) -> None:
    """A phantom in the competition's layout."""
    counts = (SMALL_TRAIN, SMALL_TEST, SEED, SMALL_SCALE) if setting.small else (TRAIN, TEST, SEED, SCALE)
    make_dataset(setting.data, Options(*counts), jobs=os.cpu_count() or 1, keep=True)


def make_five_systems(setting: Setting, record: Record) -> None:
    """Untrained networks of all systems, exported and packaged as trained ones are."""
    if not (setting.package / "manifest.json").is_file():
        make_package(setting.package, SMALL_RECIPES if setting.small else names_of([]))


def make_package(folder: Path, recipes: Sequence[str]) -> None:
    """A package of the untrained networks of some recipes' smoke profile, a route for each recipe."""
    members = [(entry, name) for name in recipes for entry in load_named(name, "smoke").members()]
    exported = folder / "exported"
    workers = min(os.cpu_count() or 1, MOST_WORKERS, len(members))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        coming = [pool.submit(export_untrained, *one, exported / one[0].member.name) for one in members]
        runs = [one.result() for one in coming]
    pairs = list(zip(members, runs, strict=True))
    write_package(folder, {name: [run for (_, its), run in pairs if its == name] for name in recipes})


def export_untrained(entry: MemberRecipe, recipe: str, folder: Path) -> TrainedMember:
    """Export a network as it is before training, but for the statistics that it normalises by."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    network = networks.for_member(entry, pretrained=False)
    usual = settle(network, entry.member)
    if entry.member.role == "localiser":
        network = Leaning(network, entry.member, usual)
    return export_as_trained(network, entry, recipe, folder, SEED)


def settle(network: nn.Module, member: Member) -> Tensor:
    """Give normalising layers the statistics of noise, as without them no answer depends on the image; the mean answer.

    (K, 4) of a localiser, (K, 3) of a grader.
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
