"""Packs of weights: networks concatenated in a few files that Kaggle does not modify."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from kernels.lumbar.manifest import Artefact, GraderWeight, Route
from training.packaging.ensemble_weights import ALL_GROUPS
from training.runs import RunFolder, TrainedMember, UnusableRun, is_done, read_run, route_of

# Kaggle takes 50 files at most, so networks share files; still small enough to retry an interrupted upload.
PACK_BYTES = 1_500_000_000
# A TorchScript file is a ZIP archive, and Kaggle unpacks archives.  Other bytes in front, and more at the end than a
# ZIP reader searches, keep a pack from being detected as one.
PACK_HEADER = b"lumbar-kit weights\n".ljust(64, b"\0")
PACK_TRAILER = bytes(1 << 17)


Located = Literal["own", "together", "apart"]


def collect(folder: RunFolder, folds: Sequence[int], allow_partial: bool) -> list[TrainedMember]:
    """The finished runs of a recipe in some folds, in the recipe's order.  Raises UnusableRun with the missing ones."""
    wanted = [
        (entry, fold)
        for entry in folder.recipe.members()
        for fold in folds
        if entry.is_trained_in(fold) and fold in (folder.recipe.packed_folds(entry.member.name) or folds)
    ]
    found: list[TrainedMember] = []
    missing: list[str] = []
    changed: list[str] = []
    for entry, fold in wanted:
        place = folder.network_folder(entry.member.name, fold)
        run = read_run(place, entry)
        if run is not None:
            found.append(run)
        else:
            (changed if is_done(place) else missing).append(str(place.relative_to(folder.runs)))
    if (missing or changed) and not allow_partial:
        raise UnusableRun(_missing_message(len(wanted), missing, changed))
    return found


def _missing_message(count: int, missing: Sequence[str], changed: Sequence[str]) -> str:
    parts = []
    if changed:
        parts.append(
            f"{len(changed)} of {count} runs were trained with another state of the recipe: {', '.join(changed)}"
            " (make train-all trains them again)"
        )
    if missing:
        parts.append(
            f"{len(missing)} of {count} runs are not finished: {', '.join(missing)}"
            " (finish them with make train-all, choose --folds, or give --allow-partial)"
        )
    return "; ".join(parts)


def routes_of(runs: Mapping[str, Sequence[TrainedMember]], locate: Located) -> tuple[Route, ...]:
    """Routes of several recipes (by name): which localisers each grader takes landmarks from.  Raises UnusableRun.

    own: those of its own recipe.  together: those of all recipes, combined.  apart: those of every recipe in turn, one
    route each (5th place: "run stage 2 once for each stage 1").  Several recipes have equal shares of each condition
    group, whatever the number of their networks.
    """
    graders = {name: part for name, found in runs.items() if (part := _with_role(found, "grader"))}
    localisers = {name: part for name, found in runs.items() if (part := _with_role(found, "localiser"))}
    if not graders or not localisers:
        raise UnusableRun(f"{', '.join(runs)}: no finished {'localiser' if graders else 'grader'}, so nothing to ship")
    routed = _equal_route if len(graders) > 1 else _route
    if locate == "own":
        alone = sorted({*localisers, *graders} - (localisers.keys() & graders.keys()))
        if alone:
            raise UnusableRun(
                f"{', '.join(alone)}: localisers without graders, or graders without localisers: "
                "join them to other recipes with --locate together or apart"
            )
        return tuple(routed(name, localisers[name], graders[name]) for name in graders)
    if locate == "together":
        every_localiser = [run for found in localisers.values() for run in found]
        return tuple(routed(name, every_localiser, found) for name, found in graders.items())
    pairs = [(finder, name) for name in graders for finder in localisers]
    return tuple(routed(f"{name}_at_{finder}", localisers[finder], graders[name]) for finder, name in pairs)


def _with_role(runs: Sequence[TrainedMember], role: str) -> list[TrainedMember]:
    return [run for run in runs if run.recipe.member.role == role]


def _route(name: str, localisers: Sequence[TrainedMember], graders: Sequence[TrainedMember]) -> Route:
    runs = [*localisers, *graders]
    return route_of(name, [run.artefact for run in runs], [run.recipe for run in runs])


def _equal_route(name: str, localisers: Sequence[TrainedMember], graders: Sequence[TrainedMember]) -> Route:
    """A route whose weights of each condition group sum to 1, over the networks that grade it."""
    route = _route(name, localisers, graders)
    groups = {run.artefact.member.name: run.recipe.member.groups for run in graders}
    own = {one.name: {group: one.weight.get(group, 0.0) for group in groups[one.name]} for one in route.graders}
    total = {group: sum(its.get(group, 0.0) for its in own.values()) for group in ALL_GROUPS}
    shares = {
        name: {group: its.get(group, 0.0) / (total[group] or 1.0) for group in ALL_GROUPS} for name, its in own.items()
    }
    shared = tuple(GraderWeight(name=name, weight=share) for name, share in shares.items())
    return route.model_copy(update={"graders": shared})


def pack(runs: Sequence[TrainedMember], folder: Path, pack_bytes: int = PACK_BYTES) -> list[Artefact]:
    """Concatenate all weights in weights-<n>.bin; returns the artefacts with file and offset in their packs.

    Raises UnusableRun for weights whose size or sha256 differs from their artefact's.
    """
    packed: list[Artefact] = []
    with tqdm(total=len(runs), desc="pack", unit="file") as progress:
        for number, group in enumerate(_groups(runs, pack_bytes)):
            path = folder / f"weights-{number}.bin"
            with path.open("wb") as file:
                file.write(PACK_HEADER)
                for run in group:
                    place = run.artefact.weights.model_copy(update={"file": path.name, "offset": file.tell()})
                    file.write(_checked_bytes(run))
                    packed.append(run.artefact.model_copy(update={"weights": place}))
                    progress.update()
                file.write(PACK_TRAILER)
    return packed


def _groups(runs: Sequence[TrainedMember], pack_bytes: int) -> list[list[TrainedMember]]:
    """Consecutive runs, as many as fit a pack; a larger run gets its own."""
    groups: list[list[TrainedMember]] = []
    size = pack_bytes
    for run in runs:
        if size + run.artefact.weights.bytes > pack_bytes:
            groups.append([])
            size = 0
        groups[-1].append(run)
        size += run.artefact.weights.bytes
    return groups


def _checked_bytes(run: TrainedMember) -> bytes:
    data = run.weights.read_bytes()
    expected = run.artefact.weights
    if len(data) != expected.bytes or hashlib.sha256(data).hexdigest() != expected.sha256:
        raise UnusableRun(f"{run.weights} differs from its artefact.json: run this fold again")
    return data
