"""One job: one network in one fold, from cache to TorchScript file."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from kernels.lumbar.manifest import Artefact, Provenance, PublishedWeights
from kernels.lumbar.run.submission import replace_json, replace_text
from training.data.cache.crop_cache import Cache
from training.data.external import LevelImages
from training.data.label_correction import Opinions, with_corrected_labels
from training.data.samples.external_samples import PretrainingSamples
from training.data.samples.member_samples import MemberSamples
from training.data.tables import Tables
from training.digests import job_digest
from training.fitting.device import Device, device_of
from training.fitting.export import ExportError, export
from training.fitting.loop import FitError, FitResult, fit
from training.fitting.scalars import PATTERN as SCALARS
from training.fitting.time_limit import TimeLimit
from training.networks import NetworkError
from training.recipe.schema import MemberRecipe, Recipe
from training.runs import CHECKPOINT, RunFolder, is_finished, read_object, remove_checkpoints

log = logging.getLogger("train")
PRETRAINING, SECOND = "pretraining", "second_step"


class TrainingError(Exception):
    """A job that cannot be done, with its name and the reason."""


@dataclass(frozen=True)
class Job:
    """What one training needs to know."""

    recipe: Recipe
    member: MemberRecipe
    fold: int
    folder: RunFolder
    tables: Tables
    folds: dict[str, int]
    crops: Callable[[], Cache]
    """Asked only for a job that is not finished: it may have to make them."""
    jitter_mm: dict[str, float]
    """Series kind → standard deviation, each axis, of what the fold's localiser misses by."""
    device: torch.device
    commit: str
    images: LevelImages | None = None
    """What networks whose recipe asks for it are pretrained on."""
    opinions: Opinions | None = None
    """What an earlier run answered out of fold, by which networks whose recipe asks for it correct their labels."""
    clock: TimeLimit | None = None

    @property
    def out(self) -> Path:
        """The job's own folder."""
        return self.folder.job(self.member.member.name, self.fold)

    @property
    def digest(self) -> str:
        """Names everything the weights depend on."""
        images = self.images.fingerprint if self.images and self.member.fitting.pretraining else None
        opinions = self.opinions.fingerprint if self.opinions and self.member.fitting.labels.any else None
        made_of = (self.tables.fingerprint, self.jitter_mm, images, opinions)
        return job_digest(self.member, self.fold, self.recipe.seed, *made_of)

    @property
    def named_member(self) -> MemberRecipe:
        """The member under the name it has in a manifest, where every fold is a member of its own."""
        named = self.member.member.model_copy(update={"name": f"{self.member.member.name}_fold{self.fold}"})
        return self.member.model_copy(update={"member": named})


def train(job: Job) -> None:
    """Fit, export and mark as done; nothing where exactly this is done already.

    Where torchrun started several processes, each calls this, the first one writes, and `out` lies where all see it.
    Raises TrainingError, OutOfTime (of which Stopped, on SIGTERM, is one).
    """
    member, out = job.named_member, job.out
    if is_finished(out, job.digest):
        remove_checkpoints(out)  # a kill may have come after done.json
        log.info("%s is finished", member.member.name)
        return
    seed = job.recipe.seed + job.fold
    started = time.monotonic()
    try:
        shared = device_of(job.device, member.fitting.optimisation.precision)
        if shared.first:
            _begin(out, job.digest)
            resolved = yaml.safe_dump(member.model_dump(mode="json"), sort_keys=False)
            replace_text(out / "recipe.resolved.yaml", resolved)
        shared.barrier()
        training = [study for study, fold in job.folds.items() if fold != job.fold]
        held_out = [study for study, fold in job.folds.items() if fold == job.fold]
        tables = with_corrected_labels(job.tables, job.opinions, member.fitting.labels, training)
        crops = _crops(job, shared)
        samples = MemberSamples(crops, tables, member, training, held_out, shared.device, seed, job.jitter_mm)
        first = _pretrained(job, member, shared.device, seed)
        initial = None if first is None else first.net.state_dict()
        results = [fit(member, samples, out, shared.device, seed, initial, clock=job.clock)]
        results += _second_step(job, member, samples, results[0], seed)
        if shared.first:
            published = [weights for result in [*([first] if first else []), *results] for weights in result.published]
            artefact = export(results[-1].net, member, out, _provenance(job, seed, published), seed)
            _finish(job, artefact, results[-1], time.monotonic() - started)
        shared.barrier()
    except (FitError, ExportError, NetworkError, ValueError) as error:
        raise TrainingError(f"{member.member.name}: {error}") from error


def _finish(job: Job, artefact: Artefact, result: FitResult, seconds: float) -> None:
    """Mark the job as done, and remove what only a resumed one needs."""
    if artefact.member.role == "localiser":  # what it misses by and its calibration are to be measured anew
        job.folder.localiser_errors(job.fold).unlink(missing_ok=True)
    replace_json(
        job.out / "done.json",
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
    """The cache, made by the first process alone where it is not there."""
    if shared.first:
        crops = job.crops()
        shared.barrier()
        return crops
    shared.barrier()
    return job.crops()


def _pretrained(job: Job, member: MemberRecipe, device: torch.device, seed: int) -> FitResult | None:
    """The fit to published images, where the recipe asks for that and there are any."""
    asked = member.fitting.pretraining
    if asked is None or job.images is None:
        return None
    changes = {"epochs": asked.epochs, "learning_rate": asked.learning_rate}
    optimisation = member.fitting.optimisation.model_copy(update=changes)
    fitting = member.fitting.model_copy(update={"optimisation": optimisation})
    first = member.model_copy(update={"fitting": fitting})
    samples = PretrainingSamples(job.images, first, device, seed, asked.sources)
    return fit(first, samples, job.out / PRETRAINING, device, seed, clock=job.clock)


def _second_step(
    job: Job, member: MemberRecipe, samples: MemberSamples, first: FitResult, seed: int
) -> list[FitResult]:
    """The fit that goes on from the first one's weights, where the recipe asks for it."""
    asked = member.fitting.second_step
    if asked is None:
        return []
    changes = {"loss": asked.loss, "loss_options": asked.loss_options, "optimisation": asked.optimisation}
    second = member.model_copy(update={"fitting": member.fitting.model_copy(update=changes)})
    started, out = first.net.state_dict(), job.out / SECOND
    return [fit(second, samples, out, samples.device, seed, started, only=asked.parts, clock=job.clock)]


def _begin(out: Path, made_by: str) -> None:
    """Make the folder; what another recipe or other data left in it must not be resumed."""
    out.mkdir(parents=True, exist_ok=True)
    mark = out / "begun.json"
    if read_object(mark).get("digest") != made_by:
        for name in (CHECKPOINT, "weights.ts", "artefact.json", "history.csv", "curves.png", "done.json"):
            (out / name).unlink(missing_ok=True)
        for old in out.glob(SCALARS):
            old.unlink()
        for name in (PRETRAINING, SECOND):
            shutil.rmtree(out / name, ignore_errors=True)
        replace_json(mark, {"digest": made_by})


def _provenance(job: Job, seed: int, published: Sequence[dict[str, str]]) -> Provenance:
    fitting = job.member.fitting
    return Provenance(
        recipe=job.recipe.name,
        network=fitting.network.name,
        backbone=job.member.backbone.timm if job.member.backbone else str(fitting.network.options.get("encoder", "")),
        fold=job.fold,
        seed=seed,
        profile=job.recipe.profile,
        torch_version=torch.__version__,
        git_commit=job.commit,
        data_fingerprint=job.tables.fingerprint,
        published=tuple(PublishedWeights(**weights) for weights in published),
        resolved_recipe=job.member.model_dump(mode="json"),
    )
