"""Trains one network in one fold, from cached crops to its TorchScript file; and the context of all such jobs."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from kernels.lumbar.manifest import Artefact, Provenance, PublishedWeights
from kernels.lumbar.run.submission import replace_json, replace_text
from training import runs
from training.data.cache.crop_cache import Cache, build_cache, requests_of
from training.data.cache.crop_groups import CropGroups
from training.data.external import LevelImages
from training.data.label_correction import EarlierPredictions, with_corrected_labels
from training.data.samples.external_samples import PretrainingSamples
from training.data.samples.member_samples import MemberSamples
from training.data.tables import Tables
from training.digests import job_digest
from training.fitting.device import Device, device_of
from training.fitting.export import ExportError, export
from training.fitting.history import EVENT_FILES
from training.fitting.loop import FitError, FitResult, fit
from training.fitting.time_limit import TimeLimit
from training.networks import NetworkError
from training.recipe.load import members_of
from training.recipe.schema import MemberRecipe, Recipe
from training.runs import PRETRAINING, SECOND, RunFolder, is_finished, read_object, remove_checkpoints

log = logging.getLogger("train")


class TrainingError(Exception):
    """A job that cannot be done, with its name and the reason."""


@dataclass(frozen=True)
class Source:
    """Inputs and folders of a training, the same for all recipes."""

    data: Path
    runs: Path
    jobs: int = 1
    """Decoding processes."""
    localisers_only: bool = False
    coordinates: Path | None = None
    """Folder of published coordinates (training/data/external.py)."""
    labels: Path | None = None
    """Out-of-fold predictions of an earlier run, for label correction."""
    cache: Path | None = None
    """Folder of crops; default: RUNS/cache."""
    cache_gb: float = math.inf
    """Disk limit for crops; if they need more, they are made in groups, one after the other."""

    @property
    def crops(self) -> Path:
        """Folder of crops."""
        return self.cache or self.runs / "cache"


@dataclass(frozen=True)
class Work:
    """One recipe on one data set: the context of its steps."""

    recipe: Recipe
    source: Source
    folder: RunFolder
    tables: Tables
    folds: dict[str, int]
    device: torch.device
    commit: str
    images: LevelImages | None = None
    """Published images for networks with `pretraining`."""
    earlier: EarlierPredictions | None = None
    """Out-of-fold predictions of an earlier run, for networks that correct their labels."""
    clock: TimeLimit | None = None

    @property
    def members(self) -> list[MemberRecipe]:
        """The networks to train."""
        return members_of(self.recipe, self.source.localisers_only)

    @property
    def localisers(self) -> list[MemberRecipe]:
        """The stage-1 networks."""
        return [one for one in self.members if one.member.role == "localiser"]

    def held_out(self, fold: int) -> list[str]:
        """The studies of a fold."""
        return [study for study, number in self.folds.items() if number == fold]

    def make_crops(self, members: Sequence[MemberRecipe]) -> Cache:
        """The crops of these networks; missing ones are made."""
        source = self.source
        return build_cache(source.data, self.tables, requests_of(members), source.crops, source.jobs)

    def crop_groups(self) -> CropGroups:
        """The crops of all networks, in groups that fit the disk limit."""
        limit_bytes = self.source.cache_gb * 1e9
        return CropGroups(self.members, len(self.tables.labels), self.source.crops, limit_bytes, self.make_crops)


@dataclass(frozen=True)
class Job:
    """Context of one training."""

    work: Work
    member: MemberRecipe
    fold: int
    crops: Callable[[], Cache]
    """Opens the crops, making missing ones; called for unfinished jobs only."""
    jitter_mm: dict[str, float]
    """Series kind → standard deviation (mm, each axis) of the fold's localisation error."""

    @property
    def out(self) -> Path:
        """The job's own folder."""
        return self.work.folder.job(self.member.member.name, self.fold)

    @property
    def digest(self) -> str:
        """Digest of everything the weights depend on."""
        images = self.work.images.fingerprint if self.work.images and self.member.fitting.pretraining else None
        earlier = self.work.earlier.fingerprint if self.work.earlier and self.member.fitting.labels.any else None
        made_of = (self.work.tables.fingerprint, self.jitter_mm, images, earlier)
        return job_digest(self.member, self.fold, self.work.recipe.seed, *made_of)

    @property
    def named_member(self) -> MemberRecipe:
        """The member as named in a manifest."""
        named = self.member.member.model_copy(update={"name": self.member.name_in(self.fold)})
        return self.member.model_copy(update={"member": named})


def train(job: Job) -> None:
    """Fit, export and mark as done; does nothing if the job is finished.

    Under torchrun every process calls this and the first one writes; `out` must be on a shared file system.
    Raises TrainingError, OutOfTime (StoppedBySignal on SIGTERM).
    """
    member, out = job.named_member, job.out
    if is_finished(out, job.digest):
        remove_checkpoints(out)  # a kill may have come after done.json
        log.info("%s is finished", member.member.name)
        return
    seed = job.work.recipe.seed + job.fold
    started = time.monotonic()
    try:
        shared = device_of(job.work.device, member.fitting.optimisation.precision)
        if shared.first:
            _begin(out, job.digest)
            resolved = yaml.safe_dump(member.model_dump(mode="json"), sort_keys=False)
            replace_text(out / runs.RESOLVED_RECIPE, resolved)
        shared.barrier()
        held_out = job.work.held_out(job.fold)
        training = [study for study, fold in job.work.folds.items() if fold != job.fold]
        tables = with_corrected_labels(job.work.tables, job.work.earlier, member.fitting.labels, training)
        crops = _crops(job, shared)
        samples = MemberSamples(crops, tables, member, training, held_out, shared.device, seed, job.jitter_mm)
        first = _pretrained(job, member, shared.device, seed)
        initial = None if first is None else first.net.state_dict()
        results = [fit(member, samples, out, shared.device, seed, initial, clock=job.work.clock)]
        results += _second_step(job, member, samples, results[0], seed)
        if shared.first:
            published = [weights for result in [*([first] if first else []), *results] for weights in result.published]
            artefact = export(results[-1].net, member, out, _provenance(job, seed, published), seed)
            _finish(job, artefact, results[-1], time.monotonic() - started)
        shared.barrier()
    except (FitError, ExportError, NetworkError, ValueError) as error:
        raise TrainingError(f"{member.member.name}: {error}") from error


def _finish(job: Job, artefact: Artefact, result: FitResult, seconds: float) -> None:
    """Mark the job as done, and remove its checkpoints."""
    if artefact.member.role == "localiser":  # its error and calibration must be measured again
        job.work.folder.localiser_errors(job.fold).unlink(missing_ok=True)
    replace_json(
        job.out / runs.DONE,
        {
            "digest": job.digest,
            "name": artefact.member.name,
            "role": artefact.member.role,
            "weight": job.member.weight,
            "seconds": round(seconds, 1),
            "validation_loss": result.validation_loss,
            "best_epoch": result.best_epoch,
        },
    )
    remove_checkpoints(job.out)


def _crops(job: Job, shared: Device) -> Cache:
    """The cache; the first process makes missing crops while the others wait."""
    if not shared.first:
        shared.barrier()
    crops = job.crops()
    if shared.first:
        shared.barrier()
    return crops


def _pretrained(job: Job, member: MemberRecipe, device: torch.device, seed: int) -> FitResult | None:
    """The fit to published images, if the recipe has `pretraining` and images are given."""
    pretraining = member.fitting.pretraining
    if pretraining is None or job.work.images is None:
        return None
    changes = {"epochs": pretraining.epochs, "learning_rate": pretraining.learning_rate}
    optimisation = member.fitting.optimisation.model_copy(update=changes)
    fitting = member.fitting.model_copy(update={"optimisation": optimisation})
    first = member.model_copy(update={"fitting": fitting})
    samples = PretrainingSamples(job.work.images, first, device, seed, pretraining.sources)
    return fit(first, samples, job.out / PRETRAINING, device, seed, clock=job.work.clock)


def _second_step(
    job: Job, member: MemberRecipe, samples: MemberSamples, first: FitResult, seed: int
) -> list[FitResult]:
    """The fit that starts from the first one's weights, if the recipe has `second_step`."""
    step = member.fitting.second_step
    if step is None:
        return []
    changes = {"loss": step.loss, "loss_options": step.loss_options, "optimisation": step.optimisation}
    second = member.model_copy(update={"fitting": member.fitting.model_copy(update=changes)})
    started, out = first.net.state_dict(), job.out / SECOND
    return [fit(second, samples, out, samples.device, seed, started, only=step.parts, clock=job.work.clock)]


def _begin(out: Path, made_by: str) -> None:
    """Make the folder; remove files that belong to another recipe or other data."""
    out.mkdir(parents=True, exist_ok=True)
    mark = out / runs.BEGUN
    if read_object(mark).get("digest") != made_by:
        for name in (runs.CHECKPOINT, runs.WEIGHTS, runs.ARTEFACT, runs.HISTORY, runs.CURVES, runs.DONE):
            (out / name).unlink(missing_ok=True)
        for old in out.glob(EVENT_FILES):
            old.unlink()
        for name in (PRETRAINING, SECOND):
            shutil.rmtree(out / name, ignore_errors=True)
        replace_json(mark, {"digest": made_by})


def _provenance(job: Job, seed: int, published: Sequence[dict[str, str]]) -> Provenance:
    fitting = job.member.fitting
    return Provenance(
        recipe=job.work.recipe.name,
        network=fitting.network.name,
        backbone=job.member.backbone.timm if job.member.backbone else str(fitting.network.options.get("encoder", "")),
        fold=job.fold,
        seed=seed,
        profile=job.work.recipe.profile,
        torch_version=torch.__version__,
        git_commit=job.work.commit,
        data_fingerprint=job.work.tables.fingerprint,
        published=tuple(PublishedWeights(**weights) for weights in published),
        resolved_recipe=job.member.model_dump(mode="json"),
    )
