"""START: the networks of another run folder or package, from which networks of the same name begin; and `start` of a
recipe, another network of its own from which one begins.

A network's own name is that without its recipe and its fold, such as sagittal_t2, so that a recipe may begin from the
networks of another one.  Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels.lumbar.manifest import Artefact, Manifest, PublishedWeights
from training.recipe_schema.schema import MemberRecipe, Recipe
from training.runs import ARTEFACT, DONE, RunFolder, RunsError, is_done, read_artefact, read_object

MANIFEST = "manifest.json"
NAMED = 8
NO_LICENCE = "not stated: that of what it was trained on"


@dataclass(frozen=True)
class StartNetwork:
    """A finished network that another one begins from."""

    artefact: Artefact
    file: Path
    """With its bytes at the offset that the artefact says."""
    start: Path
    key: str = "START"
    """What named it: START, or `start` of a recipe."""
    held_out: str | None = None
    """Digest of the studies that it never saw, where its run folder keeps it."""

    @property
    def own_name(self) -> str:
        """Without recipe and fold."""
        made = self.artefact.provenance
        return self.artefact.member.name.removeprefix(f"{made.recipe}_").removesuffix(f"_fold{made.fold}")

    @property
    def records(self) -> list[PublishedWeights]:
        """For the manifest: these weights, and what they had begun from."""
        name, weights = self.artefact.member.name, self.artefact.weights
        own = PublishedWeights(
            model=name, source=f"{self.key}={self.start.name}", sha256=weights.sha256, licence=NO_LICENCE
        )
        return [own, *self.artefact.provenance.published]


def start_networks(start: Path | None) -> tuple[StartNetwork, ...]:
    """The finished networks of a run folder or package; none without one.  Raises RunsError where it holds none."""
    if start is None:
        return ()
    found = tuple(_packaged(start) if (start / MANIFEST).is_file() else _trained(start))
    if not found:
        raise RunsError(
            f"START={start} holds no finished network: name a folder of make train-all, or one of make package"
        )
    return found


def _packaged(start: Path) -> Iterator[StartNetwork]:
    try:
        manifest = Manifest.model_validate_json((start / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise RunsError(f"{start / MANIFEST} cannot be read: package it again") from error
    for artefact in manifest.artefacts:
        yield StartNetwork(artefact, start / artefact.weights.file, start)


def _trained(start: Path) -> Iterator[StartNetwork]:
    for path in sorted(start.glob(f"*/*/*/fold*/{ARTEFACT}")):
        if not is_done(path.parent):
            continue
        try:
            artefact = read_artefact(path.parent)
        except (OSError, ValueError) as error:
            raise RunsError(f"{path} is damaged: train this network again, or name another START=") from error
        held_out = read_object(path.with_name(DONE)).get("held_out")
        yield StartNetwork(artefact, path.parent / artefact.weights.file, start, held_out=held_out)


def find_start(
    networks: Sequence[StartNetwork],
    recipe: Recipe,
    entry: MemberRecipe,
    fold: int,
    fingerprint: str = "",
    held_out: str | None = None,
) -> StartNetwork | None:
    """The one of `networks` that has the name of this network; None where there is none.

    That of the same recipe, profile and fold comes first.  A network of another fold of the same data
    (`fingerprint`), or of the same fold of another fold table (`held_out`), has seen the studies that this fold holds
    out, and is none.
    """
    own_name = entry.member.name.removeprefix(f"{recipe.owner_of(entry.member.name)}_")

    def differs(one: StartNetwork) -> tuple[bool, bool, bool]:
        made = one.artefact.provenance
        return made.recipe != recipe.owner_of(entry.member.name), made.profile != recipe.profile, made.fold != fold

    def is_usable(one: StartNetwork) -> bool:
        made = one.artefact.provenance
        same_studies = made.fold == fold and (None in (one.held_out, held_out) or one.held_out == held_out)
        return same_studies or made.data_fingerprint != fingerprint

    named = [one for one in networks if (one.own_name, one.artefact.member.role) == (own_name, entry.member.role)]
    usable = [one for one in named if is_usable(one)]
    return min(usable, key=differs, default=None)


def start_of(
    networks: Sequence[StartNetwork],
    folder: RunFolder,
    entry: MemberRecipe,
    fold: int,
    fingerprint: str = "",
    held_out: str | None = None,
) -> StartNetwork | None:
    """The network that a network begins from: that of START with its name, else the finished one of the same fold that
    its recipe names as `start`."""
    found = find_start(networks, folder.recipe, entry, fold, fingerprint, held_out)
    name = entry.fitting.start
    if found is not None or name is None:
        return found
    place = folder.network_folder(folder.recipe.localiser(name).member.name, fold)
    if not is_done(place):
        return None
    artefact = read_artefact(place)
    return StartNetwork(artefact, place / artefact.weights.file, Path(name), "start")


def names_of_networks(networks: Sequence[StartNetwork]) -> str:
    """Their own names, for a message."""
    names = list(dict.fromkeys(one.own_name for one in networks))
    return ", ".join(names[:NAMED]) + (" …" if len(names) > NAMED else "")
