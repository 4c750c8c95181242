"""Trains one network in one fold, from decoded stacks to its TorchScript file; and the context that all share."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import yaml

from kernels.lumbar.manifest import Artefact, LocaliserError, Provenance, PublishedWeights
from kernels.lumbar.run.submission import replace_json, replace_text
from kernels.lumbar.specs import SeriesKind
from training import runs
from training.data.cache.stack_cache import StackCache, build_cache
from training.data.external import LevelImages
from training.data.folds import held_out_digest
from training.data.label_correction import EarlierLabels, corrected, is_changed
from training.data.samples.external_samples import PretrainingSamples
from training.data.samples.member_samples import MemberSamples
from training.data.tables import Tables
from training.digests import training_digest
from training.evaluation.landmark_errors import LandmarkError, offsets_by_group
from training.fitting import FitError
from training.fitting.device import Device, device_of
from training.fitting.export import ExportError, export
from training.fitting.history import EVENT_FILES
from training.fitting.loop import FitResult, fit
from training.fitting.start_weights import start_state
from training.fitting.time_limit import TimeLimit
from training.networks import NetworkError
from training.recipe_schema.load import members_of
from training.recipe_schema.schema import MemberRecipe, Recipe
from training.runs import PRETRAINING, SECOND, RunFolder, is_finished, is_same_training, remove_checkpoints
from training.start import StartNetwork, start_of

log = logging.getLogger("train")


class TrainingError(Exception):
    """A network that cannot be trained, with its name and the reason."""


@dataclass(frozen=True)
class TrainingOptions:
    """Data, folders and options of a training, the same for all recipes."""

    data: Path
    runs: Path
    jobs: int = 1
    """Decoding processes."""
    localisers_only: bool = False
    coordinates: Path | None = None
    """Folder of published coordinates (training/data/external.py)."""
    labels: Path | None = None
    """Out-of-fold predictions of an earlier run, or a table of changed labels, for label correction."""
    cache: Path | None = None
    """Folder of decoded stacks; default: RUNS/cache."""
    start: Path | None = None
    """Run folder or package whose networks of the same names are begun from (training/start.py)."""


@dataclass(frozen=True)
class RecipeContext:
    """One recipe on one data set: the context of its steps."""

    recipe: Recipe
    options: TrainingOptions
    folder: RunFolder
    tables: Tables
    folds: dict[str, int]
    device: torch.device
    commit: str
    images: LevelImages | None = None
    """Published images for networks with `pretraining`."""
    earlier: EarlierLabels | None = None
    """Out-of-fold predictions of an earlier run, for networks that correct their labels; or changed labels."""
    clock: TimeLimit | None = None
    start: Sequence[StartNetwork] = ()
    """Networks from which those of the same names begin."""

    @property
    def members(self) -> list[MemberRecipe]:
        """The networks to train."""
        return members_of(self.recipe, self.options.localisers_only)

    @property
    def localisers(self) -> list[MemberRecipe]:
        """The stage-1 networks."""
        return [one for one in self.members if one.member.role == "localiser"]

    def held_out(self, fold: int) -> list[str]:
        """The studies of a fold."""
        return [study for study, number in self.folds.items() if number == fold]

    @property
    def cache_folder(self) -> Path:
        """Folder of the decoded stacks."""
        return self.options.cache or runs.cache_of(self.options.runs)

    def open_cache(self, check_pixels: bool = False) -> StackCache:
        """The decoded stacks of all studies; missing ones are made.  Raises CacheError."""
        return build_cache(self.options.data, self.tables, self.cache_folder, self.options.jobs, check_pixels)


@dataclass(frozen=True)
class NetworkTraining:
    """One network in one fold, to be trained."""

    context: RecipeContext
    member: MemberRecipe
    fold: int
    cache: Callable[[], StackCache]
    """Opens the decoded stacks, making missing ones; called for unfinished networks only."""
    errors: Mapping[str, LandmarkError]
    """Series kind → the fold's localisation error; of localisers that of the landmarks that they start from."""

    @property
    def out(self) -> Path:
        """The network's own folder."""
        return self.context.folder.network_folder(self.member.member.name, self.fold)

    @cached_property
    def start(self) -> StartNetwork | None:
        """The network that this one begins from, if START has one of its name or its recipe names one."""
        context = self.context
        given = (self.member, self.fold, context.tables.fingerprint, self.held_out)
        return start_of(context.start, context.folder, *given)

    @property
    def digest(self) -> str:
        """Digest of everything the weights depend on."""
        images = self.context.images.fingerprint if self.context.images and self.member.fitting.pretraining else None
        changed = is_changed(self.context.earlier, self.member)
        earlier = self.context.earlier.fingerprint if self.context.earlier and changed else None
        start = None if self.start is None else self.start.artefact.weights.sha256
        drawn = {kind: error.drawn for kind, error in self.errors.items()}
        made_of = (self.context.tables.fingerprint, drawn, images, earlier, start)
        return training_digest(self.member, self.fold, self.context.recipe.seed, *made_of)

    @property
    def held_out(self) -> str:
        """Digest of the studies that it never sees; beside `digest`, as a fold table may be replaced."""
        return held_out_digest(self.context.folds, self.fold)

    @property
    def named_member(self) -> MemberRecipe:
        """The member as named in a manifest."""
        named = self.member.member.model_copy(update={"name": self.member.name_in(self.fold)})
        return self.member.model_copy(update={"member": named})


def train_network(training: NetworkTraining) -> None:
    """Fit, export and mark as done; does nothing if the network is finished.

    Under torchrun every process calls this and the first one writes; `out` must be on a shared file system.
    Raises TrainingError, OutOfTime (StoppedBySignal on SIGTERM).
    """
    context, member, out = training.context, training.named_member, training.out
    if is_finished(out, training.digest, training.held_out):
        remove_checkpoints(out)  # a kill may have come after done.json
        log.info("%s is finished", member.member.name)
        return
    owner = context.recipe.owner_of(training.member.member.name)
    if owner != context.recipe.name and runs.is_done(out):
        raise TrainingError(
            f"{member.member.name} is {owner}'s and was trained on other data or with other options: train {owner} "
            "again, or give the COORDINATES= and START= that it was trained with"
        )
    seed = context.recipe.seed + training.fold
    started = time.monotonic()
    try:
        shared = device_of(context.device, member.fitting.optimisation.precision)
        held_out = context.held_out(training.fold)
        studies = [study for study, fold in context.folds.items() if fold != training.fold]
        tables, soft, fitted = corrected(context.tables, context.earlier, member, studies)
        cache = _cache(training, shared)
        sigma_mm = {kind: error.sigma_mm for kind, error in training.errors.items()}
        own = (shared.device, seed, sigma_mm, shared.cutting_threads, offsets_by_group(training.errors))
        samples = MemberSamples(cache, tables, fitted, studies, held_out, *own, soft)
        initial = _start(training, member)
        # What labels, data or START do not bear was refused by now, and an earlier training is still whole.
        if shared.first:
            _begin(training)
            resolved = yaml.safe_dump(member.model_dump(mode="json"), sort_keys=False)
            replace_text(out / runs.RESOLVED_RECIPE, resolved)
        shared.barrier()
        first = _pretrained(training, member, shared, seed, initial)
        initial = initial if first is None else first.net.state_dict()
        results = [fit(member, samples, out, shared.device, seed, initial, clock=context.clock)]
        results += _second_fit(training, member, samples, results[0], seed)
        if shared.first:
            published = [weights for result in [*([first] if first else []), *results] for weights in result.published]
            begun = [] if training.start is None else [one.model_dump() for one in training.start.records]
            artefact = export(results[-1].net, member, out, _provenance(training, seed, [*begun, *published]), seed)
            _finish(training, artefact, results[-1], time.monotonic() - started)
        shared.barrier()
    except (FitError, ExportError, NetworkError, ValueError) as error:
        raise TrainingError(f"{member.member.name}: {error}") from error


def _finish(training: NetworkTraining, artefact: Artefact, result: FitResult, seconds: float) -> None:
    """Mark the network as done, and remove its checkpoints."""
    if artefact.member.role == "localiser":  # its error and calibration must be measured again
        training.context.folder.localiser_errors(training.fold).unlink(missing_ok=True)
    replace_json(
        training.out / runs.DONE,
        {
            "digest": training.digest,
            "held_out": training.held_out,
            "name": artefact.member.name,
            "role": artefact.member.role,
            "weight": training.member.weight,
            "seconds": round(seconds, 1),
            "validation_loss": result.validation_loss,
            "best_epoch": result.best_epoch,
        },
    )
    remove_checkpoints(training.out)


def _cache(training: NetworkTraining, shared: Device) -> StackCache:
    """The cache; the first process decodes missing studies while the others wait."""
    if not shared.first:
        shared.barrier()
    cache = training.cache()
    if shared.first:
        shared.barrier()
    return cache


def _start(training: NetworkTraining, member: MemberRecipe) -> dict[str, torch.Tensor] | None:
    """The weights that START or its recipe has for this network."""
    options = training.context.options
    if options.start is not None and (training.start is None or training.start.key != "START"):
        log.warning("%s is not in START: it begins as its recipe says", member.member.name)
    if training.start is None:
        return None
    log.info("%s begins from %s", member.member.name, training.start.artefact.member.name)
    return start_state(member, training.start)


def _pretrained(
    training: NetworkTraining,
    member: MemberRecipe,
    shared: Device,
    seed: int,
    initial: dict[str, torch.Tensor] | None,
) -> FitResult | None:
    """The fit to published images, if the recipe has `pretraining` and images are given."""
    pretraining = member.fitting.pretraining
    if pretraining is None or training.context.images is None:
        return None
    first = member.with_optimisation(epochs=pretraining.epochs, learning_rate=pretraining.learning_rate)
    images, out = training.context.images, training.out / PRETRAINING
    samples = PretrainingSamples(images, first, shared.device, seed, pretraining.sources, shared.cutting_threads)
    return fit(first, samples, out, shared.device, seed, initial, clock=training.context.clock)


def _second_fit(
    training: NetworkTraining, member: MemberRecipe, samples: MemberSamples, first: FitResult, seed: int
) -> list[FitResult]:
    """The fit of `second_step`, if the recipe has one, which starts from the first fit's weights."""
    options = member.fitting.second_step
    if options is None:
        return []
    second = member.with_fitting(
        loss=options.loss, loss_options=options.loss_options, optimisation=options.optimisation
    )
    started, out = first.net.state_dict(), training.out / SECOND
    return [fit(second, samples, out, samples.device, seed, started, only=options.parts, clock=training.context.clock)]


def _begin(training: NetworkTraining) -> None:
    """Make the folder; remove files that belong to another recipe, other data or other folds."""
    out = training.out
    out.mkdir(parents=True, exist_ok=True)
    mark, made_by, held_out = out / runs.BEGUN, training.digest, training.held_out
    if not is_same_training(mark, made_by, held_out):
        for name in (runs.CHECKPOINT, runs.WEIGHTS, runs.ARTEFACT, runs.HISTORY, runs.CURVES, runs.DONE):
            (out / name).unlink(missing_ok=True)
        for old in out.glob(EVENT_FILES):
            old.unlink()
        for name in (PRETRAINING, SECOND):
            shutil.rmtree(out / name, ignore_errors=True)
        replace_json(mark, {"digest": made_by, "held_out": held_out})


def _provenance(training: NetworkTraining, seed: int, published: Sequence[dict[str, str]]) -> Provenance:
    context, fitting, backbone = training.context, training.member.fitting, training.member.backbone
    return Provenance(
        recipe=context.recipe.owner_of(training.member.member.name),
        network=fitting.network.name,
        backbone=backbone.timm if backbone else str(fitting.network.options.get("encoder", "")),
        fold=training.fold,
        seed=seed,
        profile=context.recipe.profile,
        torch_version=torch.__version__,
        git_commit=context.commit,
        data_fingerprint=context.tables.fingerprint,
        published=tuple(PublishedWeights(**weights) for weights in published),
        resolved_recipe=training.member.model_dump(mode="json"),
        localiser_errors=_drawn_from(training),
    )


def _drawn_from(training: NetworkTraining) -> dict[SeriesKind, LocaliserError]:
    """The measured errors from which this training drew its jitter, if it did."""
    if not training.member.draws_errors:
        return {}
    views = {request.series for request in training.member.member.inputs}
    measured = {view: error.for_manifest(view) for view, error in training.errors.items() if view in views}
    return {view: error for view, error in measured.items() if error is not None}
