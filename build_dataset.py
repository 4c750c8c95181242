"""Packages finished runs as one verified Kaggle dataset: packs of weights and their manifest.

    python build_dataset.py --runs RUNS --out DIR [--recipes a,b] [--profile smoke] [--locate own|together|apart]
                            [--ensemble FILE [--oof DIR]]
    python build_dataset.py --schema

The folder is built beside DIR, read back, every network loaded on the CPU and compared with its golden output, and only
then renamed to DIR.  An earlier package in DIR is replaced; anything else there is left alone and reported.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import ValidationError
from tqdm import tqdm

from kernels.build_notebook import (
    DATASET_SLUG,
    OWNER_PLACEHOLDER,
    BuildError,
    check_owner,
    check_slug,
    kaggle_owner,
)
from kernels.commands import ends_with_a_sentence
from kernels.kaggle.access import own_name
from kernels.kaggle.client import KaggleError, Polling
from kernels.kaggle.dataset import METADATA_FILE, MOST_FILES, upload
from kernels.locks import BusyError
from kernels.lumbar.labels import ROWS, group_of
from kernels.lumbar.manifest import MANIFEST_FORMAT, Manifest
from kernels.lumbar.networks.loading import load_member
from kernels.lumbar.networks.weights import WeightsError, read_manifest
from kernels.lumbar.run.submission import replace_json
from kernels.profiles import PROFILES, Profile
from kernels.whole_folder import whole_folder
from training.data.foreign_answers import ELSEWHERE
from training.data.out_of_fold import Average
from training.ensemble.recipe_scaling import FittedScaling, fit_recipe_scaling
from training.evaluation.domain import merged_domain
from training.packaging.ensemble_weights import (
    FoundEnsemble,
    chosen_runs,
    foreign_names,
    order_of,
    read_ensemble,
    stacker_of,
    weighted,
)
from training.packaging.foreign_members import ForeignNetworks, foreign_routes, read_networks
from training.packaging.packs import Located, collect, pack, routes_of, with_reliability
from training.recipe_schema.load import load_named, names_of
from training.recipe_schema.problems import schema_problems
from training.recipe_schema.schema import Recipe, RecipeError
from training.runs import RunFolder, TrainedMember, UnusableRun, read_object

RELEASES = Path(__file__).resolve().parent / "weights_manifest"
SHIP = Path("shipped")  # as `make upload` has it


def read_priors(folders: Sequence[RunFolder]) -> dict[str, tuple[float, float, float]]:
    """The priors of the training labels, the same for all recipes.  Raises BuildError where they differ."""
    found = [read_json(folder.priors, folder) for folder in folders]
    for folder, priors in zip(folders, found, strict=True):
        if priors != found[0]:
            raise BuildError(f"{folder.recipe.name} was trained on other data than the first recipe: package it apart")
    return {row: (prior[0], prior[1], prior[2]) for row, prior in found[0].items()}


def read_json(path: Path, folder: RunFolder) -> Any:
    """A file that training wrote for a recipe.  Raises BuildError."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BuildError(f"the {path.stem} of {folder.recipe.name} cannot be read: {error}") from error


def average_of(recipes: Sequence[Recipe]) -> Average:
    """How recipes are averaged together: those that average differently in logits, which most of them use."""
    averages = {recipe.average for recipe in recipes}
    return averages.pop() if len(averages) == 1 else "logits"


def dataset_metadata(owner: str, slug: str) -> dict[str, Any]:
    """Metadata for `kaggle datasets create` and `version`.  Raises BuildError for names that Kaggle refuses."""
    check_owner(owner)
    check_slug(slug)
    return {"id": f"{owner}/{slug}", "title": slug.replace("-", " ").title(), "licenses": [{"name": "other"}]}


def verify(folder: Path) -> Manifest:
    """Read the package back as the kernel will, self-testing every network on the CPU.  Raises BuildError."""
    files = [path.name for path in folder.iterdir()]
    if len(files) > MOST_FILES:
        raise BuildError(f"the package has {len(files)} files; Kaggle takes {MOST_FILES}")
    manifest = read_manifest(folder / "manifest.json")
    for artefact in tqdm(manifest.artefacts, desc="verify", unit="file"):
        if not artefact.provenance.torch_version:
            raise BuildError(f"{artefact.member.name} has no torch version in its provenance")
        load_member(folder, artefact, torch.device("cpu"))
    return manifest


def build(
    runs: Sequence[tuple[RunFolder, list[TrainedMember]]],
    out: Path,
    name: str,
    metadata: dict[str, Any],
    locate: Located = "own",
    ensemble: FoundEnsemble | None = None,
    scaling: FittedScaling | None = None,
    foreign: Sequence[ForeignNetworks] = (),
) -> Manifest:
    """Package finished runs into `out`, which is replaced only by a complete and verified package.

    `ensemble`: result of a search, replaces the recipes' own weights and `scaling`.  `foreign`: its members from
    elsewhere.  Raises BuildError, UnusableRun.
    """
    check_replaceable(out)
    if ensemble is not None and locate != "own":
        raise BuildError("an ensemble is searched with each recipe's own localisers: --locate own")
    average = ensemble.average if ensemble else average_of([folder.recipe for folder, _ in runs])
    rescaling = ensemble or scaling
    every = {folder.recipe.name: one for folder, one in runs}
    found = every
    if foreign:
        every = every | {ELSEWHERE: [run for one in foreign for run in one.runs]}
    if ensemble is not None:
        found = chosen_runs(every, ensemble)
    own = {name: its for name, its in found.items() if name != ELSEWHERE}
    routes = routes_of(own, locate, {folder.recipe.name: folder.recipe for folder, _ in runs}) if own else ()
    routes += foreign_routes(foreign, {folder.recipe.name: localisers_of(one) for folder, one in runs})
    used = {name for route in routes for name in (*route.localisers, *(grader.name for grader in route.graders))}
    by_name = {run.artefact.member.name: run for its in every.values() for run in its}  # recipes may share localisers
    packed = [run for name, run in by_name.items() if name in used]
    priors = read_priors([folder for folder, _ in runs])
    seen = [read_object(folder.domain) for folder, _ in runs]
    routes = with_reliability(routes, seen) if locate == "own" else routes
    with whole_folder(out) as partial:
        manifest = Manifest(
            name=name,
            average=average,
            priors=priors,
            shape=read_json(runs[0][0].shape, runs[0][0]),
            domain=merged_domain(seen),
            multipliers=rescaling.multipliers if rescaling else {},
            temperatures=rescaling.temperatures if rescaling else {},
            stacker=stacker_of(found, ensemble) if ensemble else None,
            artefacts=tuple(pack(packed, partial)),
            routes=weighted(routes, found, ensemble) if ensemble else routes,
            order=order_of(found, ensemble) if ensemble else (),
        )
        replace_json(partial / "manifest.json", manifest.model_dump(mode="json"))
        replace_json(partial / METADATA_FILE, metadata)
        return verify(partial)


def localisers_of(runs: Sequence[TrainedMember]) -> list[TrainedMember]:
    """Those of a recipe's networks."""
    return [run for run in runs if run.recipe.member.role == "localiser"]


def check_replaceable(out: Path) -> None:
    """Raises BuildError where `out` holds something that is no earlier package of this kit."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        known = json.loads((out / "manifest.json").read_text())["format"] == MANIFEST_FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise BuildError(f"{out} exists and is no package of this kit: name another --out")


def table(manifest: Manifest) -> str:
    """Member, MB, fold and out-of-fold scores, a line a network."""
    width = max(len(artefact.member.name) for artefact in manifest.artefacts)
    lines = [f"{'member':{width}}      MB  fold  out-of-fold score"]
    for artefact in manifest.artefacts:
        provenance = artefact.provenance
        scores = "  ".join(f"{name} {score:.4f}" for name, score in provenance.oof_score.items())
        megabytes = artefact.weights.bytes / 1e6
        lines.append(f"{artefact.member.name:{width}} {megabytes:7.1f}  {provenance.fold:4d}  {scores or '-'}")
    return "\n".join(lines)


def ungraded(manifest: Manifest) -> list[str]:
    """The rows that no grader with a weight answers, nor a stacker on all of its networks."""
    members = {artefact.member.name: artefact.member for artefact in manifest.artefacts}
    graded = set()
    for grader in [one for route in manifest.routes for one in route.graders]:
        rows = members[grader.name].answered
        graded |= {row for row in rows if grader.weight.get(group_of(row), 0.0) > 0}  # type: ignore[call-overload]
    for group, its in manifest.stacker.groups.items() if manifest.stacker else ():
        answered = [{row for name in model for row in members[name].answered} for model in its.models]
        graded |= {row for row in set.intersection(*answered) if group_of(row) == group}
    return [row for row in ROWS if row not in graded]


def choose_recipes(runs: Path, names: str | None, profile: Profile) -> list[Recipe]:
    """The recipes named, or all that have runs in this profile.  Raises BuildError where there is none."""
    if names is None:
        chosen = sorted(path.parent.name for path in runs.glob(f"*/{profile}") if path.is_dir())
    else:
        chosen = names_of([names])
    if not chosen:
        raise BuildError(f"{runs} holds no runs of profile '{profile}': make some with make train-all")
    return [load_named(name, profile) for name in chosen]


def scaling_source(manifest: Manifest, options: argparse.Namespace, fitted: FittedScaling | None) -> str:
    """Where weights and scaling come from, as a sentence."""
    if fitted is None:
        stacker = f" and stacker ({manifest.stacker.kind})" if manifest.stacker else ""
        return f"weights, multipliers and temperatures{stacker} of {options.ensemble}"
    measured = "" if options.locate == "own" else "; measured at the landmarks of each recipe's own localisers"
    return fitted.remark + measured


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="build_dataset.py", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="folder that training wrote")
    parser.add_argument("--out", type=Path, help="folder to make")
    parser.add_argument("--recipes", help="names, separated by commas; default: all that have runs")
    parser.add_argument("--profile", choices=PROFILES, default="full")
    parser.add_argument("--folds", nargs="*", type=int, help="default: those that the recipe trains")
    parser.add_argument(
        "--locate",
        choices=get_args(Located),
        default="own",
        help="landmarks of graders: of their own localisers, of those of all recipes together, or once of each",
    )
    parser.add_argument("--ensemble", type=Path, help="result of make ensemble: members, weights and order")
    parser.add_argument("--oof", type=Path, help="folder of the ensemble's members from elsewhere and their networks")
    parser.add_argument("--name", help="name of the ensemble; default: the recipes' names and the profile")
    parser.add_argument("--owner", default=kaggle_owner(), help="Kaggle user name (environment KAGGLE_USERNAME)")
    parser.add_argument("--slug", default=DATASET_SLUG, help=f"slug of the dataset ({DATASET_SLUG})")
    parser.add_argument("--allow-partial", action="store_true", help="package what is finished")
    parser.add_argument("--upload", action="store_true", help="also upload it to Kaggle, as `make upload` does")
    parser.add_argument("--release", action="store_true", help="also put the manifest into weights_manifest/")
    parser.add_argument("--schema", action="store_true", help="only write weights_manifest/schema.json")
    options = parser.parse_args(argv)
    if not options.schema and (options.runs is None or options.out is None):
        parser.error("--runs and --out are needed")
    return options


def print_package(manifest: Manifest, out: Path, source: str, client_user: str) -> None:
    """Say what a package holds, where its ensemble comes from, and what is missing for an upload.

    `client_user`: the owner, where it was not named but is the user of the Kaggle client.
    """
    print(table(manifest))
    print(source)
    print(f"{len(manifest.artefacts)} networks in {out}, each loaded and tested")
    if rows := ungraded(manifest):
        conditions = list(dict.fromkeys(row[: -len("_l1_l2")] for row in rows))
        print(f"no network grades {len(rows)} of {len(ROWS)} rows, which keep the priors: {', '.join(conditions)}")
    if client_user:
        print(f"they are {client_user}'s, the user of the Kaggle client (OWNER=NAME names another)")


@ends_with_a_sentence("build_dataset", BuildError, BusyError, RecipeError, UnusableRun, WeightsError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    if options.schema:
        replace_json(RELEASES / "schema.json", Manifest.model_json_schema())
        return 0
    if options.oof is not None and options.ensemble is None:
        raise BuildError(
            "OOF= packages members of an ensemble: name the file that make ensemble OOF= wrote with ENSEMBLE=, or "
            "leave OOF= out"
        )
    owner = options.owner
    if owner == OWNER_PLACEHOLDER:
        owner = own_name() or owner
    metadata = dataset_metadata(owner, options.slug)
    recipes = choose_recipes(options.runs, options.recipes, options.profile)
    runs = []
    for recipe in recipes:
        folder = RunFolder(options.runs, recipe)
        folds = options.folds or recipe.train_folds or range(recipe.folds)
        runs.append((folder, collect(folder, folds, options.allow_partial)))
    suffix = [] if options.profile == "full" else [options.profile]
    name = options.name or "_".join([*(recipe.name for recipe in recipes), *suffix])
    ensemble = read_ensemble(options.ensemble, FoundEnsemble) if options.ensemble else None
    priors = read_priors([folder for folder, _ in runs])
    fitted = None if ensemble else fit_recipe_scaling(runs, average_of(recipes), priors)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            names = foreign_names(ensemble, options.oof)
            foreign = [read_networks(options.oof, one, Path(scratch), options.profile) for one in names]
            manifest = build(runs, options.out, name, metadata, options.locate, ensemble, fitted, foreign)
    except ValidationError as error:
        raise BuildError(f"the manifest would be invalid: {schema_problems(error)[0]}") from error
    if options.release:
        shutil.copyfile(options.out / "manifest.json", RELEASES / f"{name}.json")
    source = scaling_source(manifest, options, fitted)
    print_package(manifest, options.out, source, "" if owner == options.owner else owner)
    if owner == OWNER_PLACEHOLDER:
        print("before an upload or a push: the same with OWNER=<your Kaggle name>, or set KAGGLE_USERNAME")
    if options.upload:
        try:
            upload(options.out, SHIP, Polling())
        except KaggleError as error:
            print(f"upload stopped: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
