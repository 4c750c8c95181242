"""Packs of weights: networks concatenated in a few files that Kaggle does not modify."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from kernels.kaggle.dataset import MOST_FILES
from kernels.lumbar.manifest import Artefact, GraderWeight, Reliability, Route
from kernels.text import first_of
from training.packaging.ensemble_weights import ALL_GROUPS
from training.recipe_schema.schema import Recipe
from training.runs import RunFolder, TrainedMember, UnusableRun, is_done, read_run, route_of
from training.runs import routes_of as runs_routes

# Networks share files, as Kaggle takes few; still small enough to retry an interrupted upload.
PACK_BYTES = 1_500_000_000
# Beside the manifest and what else lies in a package.
MOST_PACKS = MOST_FILES - 10
# A TorchScript file is a ZIP archive, and Kaggle unpacks archives.  Other bytes in front, and more at the end than a
# ZIP reader searches, keep a pack from being detected as one.
PACK_HEADER = b"lumbar-kit weights\n".ljust(64, b"\0")
PACK_TRAILER = bytes(1 << 17)
# Runs that are named where some are not finished.
SHOWN = 3

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
            f"{len(changed)} of {count} runs were trained with another state of the recipe: {first_of(changed, SHOWN)}"
            " (make train-all trains them again)"
        )
    if missing:
        parts.append(
            f"{len(missing)} of {count} runs are not finished: {first_of(missing, SHOWN)}"
            " (finish them with make train-all, choose folds with FOLDS=, or give build_dataset.py --allow-partial)"
        )
    return "; ".join(parts)


def routes_of(
    runs: Mapping[str, Sequence[TrainedMember]], locate: Located, recipes: Mapping[str, Recipe] | None = None
) -> tuple[Route, ...]:
    """Routes of several recipes (by name): which localisers each grader takes landmarks from.  Raises UnusableRun.

    own: those of its own recipe, in the routes that `recipes` declare.  together: those of all recipes, combined.
    apart: those of every recipe, and of every declared route, in turn (5th place: "run stage 2 once for each stage 1").
    Several recipes have equal shares of each condition group, whatever the number of their networks.
    """
    graders = {name: part for name, found in runs.items() if (part := _with_role(found, "grader"))}
    localisers = {name: part for name, found in runs.items() if (part := _with_role(found, "localiser"))}
    if not graders or not localisers:
        raise UnusableRun(f"{', '.join(runs)}: no finished {'localiser' if graders else 'grader'}, so nothing to ship")
    known = recipes or {}
    if locate == "own":
        alone = sorted({*localisers, *graders} - (localisers.keys() & graders.keys()))
        if alone:
            raise UnusableRun(
                f"{', '.join(alone)}: localisers without graders, or graders without localisers: "
                "join them to other recipes with --locate together or apart"
            )
        found = {name: _own_routes(name, known.get(name), [*localisers[name], *graders[name]]) for name in graders}
    elif locate == "together":
        every_localiser = [run for its in localisers.values() for run in its]
        found = {name: (_route(name, every_localiser, its),) for name, its in graders.items()}
    else:
        sets = [one for name, its in localisers.items() for one in _localiser_sets(name, known.get(name), its)]
        found = {
            name: tuple(_route(f"{name}_at_{finder}", located, its) for finder, located in sets)
            for name, its in graders.items()
        }
    if len(found) > 1:
        found = {name: _with_equal_share(routes, graders[name]) for name, routes in found.items()}
    return tuple(route for routes in found.values() for route in routes)


def _with_role(runs: Sequence[TrainedMember], role: str) -> list[TrainedMember]:
    return [run for run in runs if run.recipe.member.role == role]


def _route(name: str, localisers: Sequence[TrainedMember], graders: Sequence[TrainedMember]) -> Route:
    runs = [*localisers, *graders]
    return route_of(name, [run.artefact for run in runs], [run.recipe for run in runs])


def _own_routes(name: str, recipe: Recipe | None, runs: Sequence[TrainedMember]) -> tuple[Route, ...]:
    artefacts, members = [run.artefact for run in runs], [run.recipe for run in runs]
    return runs_routes(recipe, artefacts, members) if recipe else (route_of(name, artefacts, members),)


def _localiser_sets(
    name: str, recipe: Recipe | None, localisers: Sequence[TrainedMember]
) -> list[tuple[str, list[TrainedMember]]]:
    """Names and localisers of a recipe's declared routes; without any, all of its localisers."""
    if recipe is None or not recipe.routes:
        return [(name, list(localisers))]
    return [
        (f"{name}_{route}", its)
        for route in recipe.routes
        if (its := [run for run in localisers if route in recipe.routes_of(run.recipe.member.name)])
    ]


def with_reliability(routes: Sequence[Route], seen: Sequence[Mapping[str, Any]]) -> tuple[Route, ...]:
    """Recipes' own routes with what validation found of their landmarks; `seen`: domain.json of each recipe."""
    found = {name: one for its in seen for name, one in its.get("reliability", {}).items()}
    known = {name: Reliability.model_validate(one) for name, one in found.items()}
    return tuple(route.model_copy(update={"reliability": known.get(route.name)}) for route in routes)


def _with_equal_share(routes: Sequence[Route], graders: Sequence[TrainedMember]) -> tuple[Route, ...]:
    """A recipe's routes with weights of each condition group that sum to 1, over the networks that grade it."""
    groups = {run.artefact.member.name: run.recipe.member.groups for run in graders}
    parts = [part for route in routes for part in route.graders]
    total = {
        group: sum(one.weight.get(group, 0.0) for one in parts if group in groups[one.name]) for group in ALL_GROUPS
    }

    def share(part: GraderWeight) -> GraderWeight:
        own = {group: part.weight.get(group, 0.0) if group in groups[part.name] else 0.0 for group in ALL_GROUPS}
        return GraderWeight(name=part.name, weight={group: own[group] / (total[group] or 1.0) for group in ALL_GROUPS})

    return tuple(route.model_copy(update={"graders": tuple(map(share, route.graders))}) for route in routes)


def pack(runs: Sequence[TrainedMember], folder: Path) -> list[Artefact]:
    """Concatenate all weights in weights-<n>.bin; returns the artefacts with file and offset in their packs.

    Packs are larger than PACK_BYTES where there would be more than MOST_PACKS of them.
    Raises UnusableRun for weights whose size or sha256 differs from their artefact's.
    """
    packed: list[Artefact] = []
    with tqdm(total=len(runs), desc="pack", unit="file") as progress:
        for number, group in enumerate(_groups(runs)):
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


def _groups(runs: Sequence[TrainedMember]) -> list[list[TrainedMember]]:
    """Consecutive runs, as many as fit a pack; a larger run gets its own."""
    groups: list[list[TrainedMember]] = []
    sizes = [run.artefact.weights.bytes for run in runs]
    # Every pack but the last is full up to one network, so that this makes MOST_PACKS at most.
    pack_bytes = max(PACK_BYTES, -(-sum(sizes) // (MOST_PACKS - 1)) + max(sizes, default=0))
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
