"""The rehearsal of one network: build, fit one batch, export."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kernels.lumbar.labels import UNITS
from kernels.lumbar.manifest import Provenance
from training.data.samples.batch import Batch
from training.fitting import FitError
from training.fitting.device import Device, device_of, has_bfloat16
from training.fitting.export import ExportError, export
from training.fitting.fit_state import FitState
from training.fitting.losses.registry import outputs_of
from training.fitting.randomness import seed_everything
from training.recipe_schema.schema import MemberRecipe

from .best_answers import best_loss
from .fixed_batch import SEED, FixedBatch, fixed_batch, samples_of
from .memory import GIB, Estimate, sample_bytes, saved_bytes

# Steps at the published learning rate.
STEPS = 40
# It suits published weights, and from scratch may be too low for so few steps: as many follow, at a higher one where
# the first have not gone half of the way, as many again at the higher one, and once more where these have.
FASTER, FASTEST, HALFWAY, PARTS = 10.0, 1e-3, 0.5, 4
# The loss is that of the mean of the last steps, as dropout makes single ones vary.
LAST = 3
SHARE = 0.5
# Of what the best constant answer has above the floor, at most this may be left.  Where that is less than so little of
# the first loss, the batch has nothing else to teach, such as one point at the same place in two samples.
OF_CONSTANT, LEAST_CONSTANT = 0.9, 0.02
# Samples of a batch on a CPU: batch normalisation needs more than one.
CPU_GRADED, CPU_LOCATED = 4, 2


@dataclass(frozen=True)
class Setting:
    """Where and how networks are rehearsed."""

    data: Path
    cache: Path
    memory_gb: float
    samples: int | None = None
    """In a batch; None: a few on a CPU, as published on a GPU."""
    steps: int = STEPS


@dataclass
class Fit:
    """The course of a fit."""

    before: float
    floor: float
    constant: float
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def after(self) -> float:
        """Mean of the last steps."""
        return statistics.fmean(self.losses[-LAST:])

    @property
    def goal(self) -> float:
        """The loss without half of what it had above the floor, and clearly below that of any constant answer."""
        span = self.before - self.floor
        constant = self.constant - self.floor
        return self.floor + (
            SHARE * span if constant < LEAST_CONSTANT * span else min(SHARE * span, OF_CONSTANT * constant)
        )

    @property
    def has_learned(self) -> bool:
        """Whether the goal is reached."""
        return len(self.losses) > LAST and self.after <= self.goal

    @property
    def is_learning(self) -> bool:
        """Whether the loss is on its way to the goal."""
        return self.before - self.after >= HALFWAY * (self.before - self.goal)

    def reason(self) -> str:
        """Why it has not learned."""
        return (
            f"the loss is {self.after:.3g} after {len(self.losses)} steps: it was {self.before:.3g}, the best constant "
            f"answer has {self.constant:.3g}, the floor is {self.floor:.3g}"
        )


def rehearse(member: MemberRecipe, setting: Setting, device: torch.device) -> dict[str, Any]:
    """Fields of results.Rehearsed; `failure` if it does not learn, or its export differs.

    Raises whatever else keeps it from that.
    """
    shared = device_of(device, member.fitting.optimisation.precision, mixed_on_cpu=has_bfloat16())
    recipe = _for_one_batch(member, setting, device)
    batch = fixed_batch(samples_of(recipe, setting.data, setting.cache, shared.device))
    try:
        run, fit, found = _fitted(recipe, member, batch, shared, setting)
    except (RuntimeError, FitError) as error:
        if device.type == "cuda" or not shared.is_mixed or not _may_be_bfloat16s(error):
            raise
        shared = device_of(device, "float32")
        run, fit, found = _fitted(recipe, member, batch, shared, setting)
    published = samples_in(member, member.fitting.optimisation.batch_size)
    found |= {
        "device": _named(shared),
        "parameters": sum(one.numel() for one in run.net.parameters()),
        "samples": len(batch.target),
        "published_samples": published,
        "published_accumulate": member.fitting.optimisation.accumulate,
        "activation_checkpointing": run.memory.checkpointed,
        "steps": len(fit.losses),
        "rates": fit.rates,
        "before": fit.before,
        "after": fit.after,
        "constant": fit.constant,
        "floor": fit.floor,
        "seconds_a_step": statistics.median(fit.seconds[1:] or fit.seconds) * published / _passed(run, batch),
    }
    failures = [] if fit.has_learned else [fit.reason()]
    try:
        with tempfile.TemporaryDirectory() as folder:
            export(run.newest_net(), member, Path(folder), _provenance(member), SEED)
    except ExportError as error:
        failures.append(f"export: {error}")
    return found | {"failure": "; ".join(failures)}


def _may_be_bfloat16s(error: RuntimeError | FitError) -> bool:
    """Whether single precision may not have it: CPUs lack some operations in bfloat16, and oneDNN's gradient of the
    weights of some 3D convolutions is NaN there."""
    return isinstance(error, FitError) or "not implemented for 'BFloat16'" in str(error)


def _named(device: Device) -> str:
    if device.device.type == "cuda":
        return torch.cuda.get_device_name(device.device)
    return "cpu (mixed bfloat16)" if device.is_mixed else "cpu"


def samples_in(member: MemberRecipe, batch_size: int) -> int:
    """Samples of a batch of the recipe."""
    return batch_size * (len(UNITS[member.member.unit]) if member.fitting.optimisation.whole_studies else 1)


def _for_one_batch(member: MemberRecipe, setting: Setting, device: torch.device) -> MemberRecipe:
    """The member without warm-up, schedule and EMA, and without blended samples, whose loss has no zero."""
    optimisation, is_cpu = member.fitting.optimisation, device.type == "cpu"
    few = CPU_GRADED if member.member.role == "grader" else CPU_LOCATED
    wanted = setting.samples or (few if is_cpu else samples_in(member, optimisation.batch_size))
    size = max(wanted // samples_in(member, 1), 1)
    parts = 1 if is_cpu else min(optimisation.accumulate, size)
    changes = {"schedule": "constant", "warmup": 0.0, "ema_decay": None, "batch_size": size, "accumulate": parts}
    augmentation = member.fitting.augmentation.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    return member.with_optimisation(**changes).with_fitting(augmentation=augmentation)


def _fitted(
    recipe: MemberRecipe, published: MemberRecipe, batch: Batch, device: Device, setting: Setting
) -> tuple[FitState, Fit, dict[str, Any]]:
    """The network after its steps, their course, and the memory: on a GPU that of the parts which fit."""
    is_gpu = device.device.type == "cuda"
    if is_gpu:
        whole = torch.cuda.get_device_properties(device.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, setting.memory_gb * GIB / whole), device.device)
    seed_everything(SEED, 0)
    run = FitState(recipe, FixedBatch(batch), device, pretrained=False)
    run.net.train()
    with torch.no_grad(), device.autocast():
        outputs = outputs_of(run.net)(*batch.views, batch.present)
    constant, floor = (best_loss(outputs, batch, recipe.fitting, constant=one) for one in (True, False))
    del outputs
    fit = Fit(math.nan, floor, constant)
    with saved_bytes(run.net) as saved:
        _step(run, fit, batch)
    if is_gpu:  # after the first step, which finds the parts that fit
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device.device)
    fit.before = fit.losses[0]
    _fit(run, fit, batch, setting.steps)
    if is_gpu:
        peak = torch.cuda.max_memory_allocated(device.device) / GIB
        return run, fit, {"memory_gib": peak, "memory_is": "measured", "accumulate": run.memory.rounds}
    optimisation = published.fitting.optimisation
    if run.memory.checkpointed:  # what is kept is not seen here; a GPU measures it
        return run, fit, {"accumulate": optimisation.accumulate}
    samples = samples_in(published, optimisation.batch_size)
    parameters = sum(one.numel() for one in run.net.parameters())
    kept = sample_bytes(saved, _passed(run, batch), parameters, optimisation.precision, is_mixed=device.is_mixed)
    estimate = Estimate(parameters, kept, optimisation.precision, run.memory.least)
    parts = estimate.accumulate_for(samples, optimisation.batch_size, optimisation.accumulate, setting.memory_gb)
    gib = estimate.gib(samples, parts)
    return run, fit, {"memory_gib": gib, "memory_is": "estimated", "accumulate": parts}


def _passed(run: FitState, batch: Batch) -> int:
    """Samples that went through the network: a single one twice where it must."""
    return max(len(batch.target), run.memory.least)


def _fit(run: FitState, fit: Fit, batch: Batch, steps: int) -> None:
    """Steps at the recipe's rate and then at a higher one, until it has learned."""
    published = run.optimisation.learning_rate
    faster = max(published, min(FASTER * published, FASTEST))
    for part in range(PARTS):
        if part == PARTS - 1 and not fit.is_learning:
            return
        rate = published if part == 0 or (part == 1 and fit.is_learning) else faster
        if rate not in fit.rates:
            fit.rates.append(rate)
        run.optimisation = run.optimisation.model_copy(update={"learning_rate": rate})
        for _ in range(steps):
            _step(run, fit, batch)
            if fit.has_learned:
                return


def _step(run: FitState, fit: Fit, batch: Batch) -> None:
    started = time.perf_counter()
    loss = run.step(batch, len(fit.losses)).mean.item()
    fit.seconds.append(time.perf_counter() - started)
    fit.losses.append(loss)
    if not math.isfinite(loss):
        raise FitError(f"the loss is {loss} at step {len(fit.losses)}")


def _provenance(member: MemberRecipe) -> Provenance:
    """Of a file that is thrown away."""
    return Provenance(
        recipe="rehearsal",
        network=member.fitting.network.name,
        backbone=member.backbone.timm if member.backbone else "",
        fold=0,
        seed=SEED,
        profile="full",
        torch_version=torch.__version__,
        git_commit="",
        data_fingerprint="",
    )
