"""One job: one network in one fold, from cache to TorchScript file."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from kernels.lumbar.manifest import Provenance
from kernels.lumbar.submission import replace_json, replace_text
from training.clock import Clock
from training.data.cache import Cache
from training.data.external import LevelImages
from training.data.external_samples import PretrainingSamples
from training.data.opinions import Opinions, with_corrected_labels
from training.data.samples import MemberSamples
from training.data.tables import Tables
from training.fitting.export import ExportError, export
from training.fitting.loop import CHECKPOINT, FitError, FitResult, fit
from training.networks import NetworkError
from training.recipe import MemberRecipe, Recipe
from training.runs import RunFolder, is_finished, job_digest

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
    clock: Clock | None = None

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
    """Fit, export and mark as done; nothing where exactly this is done already.  Raises TrainingError, OutOfTime."""
    member, out = job.named_member, job.out
    if is_finished(out, job.digest):
        log.info("%s is finished", member.member.name)
        return
    _begin(out, job.digest)
    replace_text(out / "recipe.resolved.yaml", yaml.safe_dump(member.model_dump(mode="json"), sort_keys=False))
    training = [study for study, fold in job.folds.items() if fold != job.fold]
    held_out = [study for study, fold in job.folds.items() if fold == job.fold]
    seed = job.recipe.seed + job.fold
    started = time.monotonic()
    try:
        tables = with_corrected_labels(job.tables, job.opinions, member.fitting.labels, training)
        samples = MemberSamples(job.crops(), tables, member, training, held_out, job.device, seed, job.jitter_mm)
        result = fit(member, samples, out, job.device, seed, _pretrained(job, member, seed), clock=job.clock)
        result = _second_step(job, member, samples, result, seed)
        artefact = export(result.net, member, out, _provenance(job, seed), seed)
    except (FitError, ExportError, NetworkError, ValueError) as error:
        raise TrainingError(f"{member.member.name}: {error}") from error
    replace_json(
        out / "done.json",
        {
            "digest": job.digest,
            "name": artefact.member.name,
            "role": member.member.role,
            "weight": member.weight,
            "seconds": round(time.monotonic() - started, 1),
            "validation_loss": result.validation_loss,
            "best_epoch": result.best_epoch,
        },
    )
    for needless in out.rglob(CHECKPOINT):  # as large as five times the weights
        needless.unlink()


def _pretrained(job: Job, member: MemberRecipe, seed: int) -> dict[str, torch.Tensor] | None:
    """Weights fitted to published images, where the recipe asks for that and there are any."""
    asked = member.fitting.pretraining
    if asked is None or job.images is None:
        return None
    changes = {"epochs": asked.epochs, "learning_rate": asked.learning_rate}
    optimisation = member.fitting.optimisation.model_copy(update=changes)
    fitting = member.fitting.model_copy(update={"optimisation": optimisation})
    first = member.model_copy(update={"fitting": fitting})
    samples = PretrainingSamples(job.images, first, job.device, seed, asked.sources)
    return fit(first, samples, job.out / PRETRAINING, job.device, seed, clock=job.clock).net.state_dict()


def _second_step(job: Job, member: MemberRecipe, samples: MemberSamples, first: FitResult, seed: int) -> FitResult:
    """The fit that goes on from the first one's weights, where the recipe asks for it."""
    asked = member.fitting.second_step
    if asked is None:
        return first
    changes = {"loss": asked.loss, "loss_options": asked.loss_options, "optimisation": asked.optimisation}
    second = member.model_copy(update={"fitting": member.fitting.model_copy(update=changes)})
    started = first.net.state_dict()
    return fit(second, samples, job.out / SECOND, job.device, seed, started, only=asked.parts, clock=job.clock)


def _begin(out: Path, made_by: str) -> None:
    """Make the folder; what another recipe or other data left in it must not be resumed."""
    out.mkdir(parents=True, exist_ok=True)
    mark = out / "begun.json"
    if not mark.is_file() or json.loads(mark.read_text()).get("digest") != made_by:
        for name in (CHECKPOINT, "weights.ts", "artefact.json", "history.csv", "curves.png", "done.json"):
            (out / name).unlink(missing_ok=True)
        for name in (PRETRAINING, SECOND):
            shutil.rmtree(out / name, ignore_errors=True)
        replace_json(mark, {"digest": made_by})


def _provenance(job: Job, seed: int) -> Provenance:
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
        resolved_recipe=job.member.model_dump(mode="json"),
    )
