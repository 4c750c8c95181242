"""The full profile's networks at the kernel's batch, in half: time a study, memory, and hours for all studies."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

from kernels.lumbar.labels import UNITS
from kernels.lumbar.networks.devices import STUDIES_ON_GPU
from kernels.profiles import Profile
from training import networks
from training.benchmarks.kernel import HIDDEN_STUDIES
from training.benchmarks.tables import Record
from training.recipe_schema.load import load_named, names_of
from training.recipe_schema.schema import MemberRecipe, Recipe

from .forwards import inputs_of, seconds_of
from .parts import Setting

ROUNDS, BUILDERS, SMALL = 3, 4, 2
# Published peaks: half-precision TFLOP/s without sparsity, GB/s of memory.
PEAKS = {"T4": (65.0, 320.0), "H100": (989.0, 3350.0), "H200": (989.0, 4800.0), "A100": (312.0, 1935.0)}


@dataclass(frozen=True)
class ShippedNetwork:
    """A network of the full profile, and in how many folds it is shipped."""

    entry: MemberRecipe
    folds: int

    @property
    def rows(self) -> int:
        """Of a batch of studies with all test-time augmentation."""
        member = self.entry.member
        return STUDIES_ON_GPU * len(UNITS[member.unit]) * member.passes

    @property
    def pixels(self) -> float:
        """Of a batch of studies: a proxy for the work before that is measured."""
        return self.rows * sum(one.slices.count * one.size_px**2 for one in self.entry.member.inputs) / 1e6


def shipped_networks(profile: Profile) -> list[ShippedNetwork]:
    """All networks of all systems, those with most pixels first."""
    recipes = [load_named(name, profile) for name in names_of([])]
    found = [ShippedNetwork(entry, _folds(recipe, entry)) for recipe in recipes for entry in recipe.members()]
    return sorted(found, key=lambda shipped: -shipped.pixels)


def _folds(recipe: Recipe, entry: MemberRecipe) -> int:
    packed = recipe.packed_folds(entry.member.name) or range(recipe.folds)
    return sum(entry.is_trained_in(fold) for fold in packed)


def measure(setting: Setting, record: Record) -> None:
    """Network by network until the time is up; after each the hours of all."""
    all_shipped = shipped_networks("smoke" if setting.small else "full")
    # Every so many, large and small ones alike: where time runs out, the rest is like these.
    chosen = all_shipped[:: len(all_shipped) // SMALL] if setting.small else _spread(all_shipped)
    columns = ["network", "folds", "rows", "ms a study", "MiB", "rows at once"]
    table = record.table("full networks, half precision, eager, batches of 8 studies", columns)
    measured: list[tuple[ShippedNetwork, float]] = []
    for shipped, network in _built(chosen, setting):
        try:
            seconds, memory, rows = _measured(shipped, network.result(), setting.device)
        except Exception as error:  # noqa: BLE001 - an error of one network must not cost the others
            record.check(False, f"{shipped.entry.member.name}: {type(error).__name__}: {str(error).strip()[:200]}")
            continue
        measured.append((shipped, seconds))
        each = 1e3 * seconds / STUDIES_ON_GPU
        table.rows.append([shipped.entry.member.name, shipped.folds, shipped.rows, each, memory, rows])
        table.rows.sort(key=lambda row: -float(row[4] or 0))
        table.remarks = _projected(all_shipped, measured, setting.device)
        record.save()


def _spread(all_shipped: list[ShippedNetwork]) -> list[ShippedNetwork]:
    """The ten largest, then every fourth, and the others after them."""
    first = all_shipped[:10]
    rest = all_shipped[10:]
    return [*first, *(one for start in range(4) for one in rest[start::4])]


def _built(chosen: list[ShippedNetwork], setting: Setting) -> Iterator[tuple[ShippedNetwork, Future[nn.Module]]]:
    """Networks that are being built by some threads, in their order."""
    with ThreadPoolExecutor(1 if setting.small else BUILDERS) as pool:
        ahead = 2 * BUILDERS
        coming = [pool.submit(networks.for_member, shipped.entry, pretrained=False) for shipped in chosen[:ahead]]
        for number, shipped in enumerate(chosen):
            network = coming.pop(0)
            if number + ahead < len(chosen):
                coming.append(pool.submit(networks.for_member, chosen[number + ahead].entry, pretrained=False))
            yield shipped, network
            if setting.is_late:
                for one in coming:
                    one.cancel()
                return


def _measured(shipped: ShippedNetwork, network: nn.Module, device: str) -> tuple[float, float | None, int]:
    """Seconds of a batch of studies, peak MiB, and the rows that fit at once."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    network = copy.deepcopy(network).to(device, dtype).eval()
    rows = shipped.rows if device == "cuda" else 1
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    while True:
        try:
            given = inputs_of(shipped.entry.member, rows, device, dtype)
            with torch.inference_mode():
                seconds = seconds_of(lambda: network(*given), device, ROUNDS)  # noqa: B023 - called before it changes
            break
        except torch.cuda.OutOfMemoryError:
            if rows == 1:
                raise
            rows //= 2
        torch.cuda.empty_cache()
    memory = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    return seconds * shipped.rows / rows, memory, rows


def _projected(
    all_shipped: list[ShippedNetwork], measured: list[tuple[ShippedNetwork, float]], device: str
) -> list[str]:
    """Hours of all networks in all folds; those not measured by their pixels."""
    known = sum(seconds * shipped.folds for shipped, seconds in measured)
    a_pixel = known / sum(shipped.pixels * shipped.folds for shipped, _ in measured)
    names = {shipped.entry.member.name for shipped, _ in measured}
    rest = sum(one.pixels * one.folds for one in all_shipped if one.entry.member.name not in names) * a_pixel
    hours = (known + rest) / STUDIES_ON_GPU * HIDDEN_STUDIES / 3600
    count = sum(shipped.folds for shipped in all_shipped)
    lines = [
        f"{len(measured)} of {len(all_shipped)} networks measured, {100 * known / (known + rest):.0f} % of the time; "
        f"{count} with their folds: forwards of {HIDDEN_STUDIES} studies take {hours:.2f} hours here"
    ]
    name = torch.cuda.get_device_name(0) if device == "cuda" else ""
    own = next((peaks for model, peaks in PEAKS.items() if model in name), None)
    if own is not None:
        slower = [ours / theirs for ours, theirs in zip(own, PEAKS["T4"], strict=True)]
        lines.append(
            f"two T4, by published peaks of half precision and of memory: {hours * max(slower) / 2:.1f} and "
            f"{hours * min(slower) / 2:.1f} hours, forwards alone"
        )
    return lines
