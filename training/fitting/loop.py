"""Fits one member: epochs, validation, checkpoints, and exact continuation of a run that was killed or stopped.

Everything random is seeded anew at the start of each epoch from (seed, epoch), so that a run that continues from the
last whole epoch draws the same numbers as one that was never interrupted; one that SIGTERM stopped within an epoch left
its generators in the checkpoint.  Either way, on the CPU the weights are bit-identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from training.data.samples.batch import Samples
from training.fitting.time_limit import OutOfTime, TimeLimit
from training.fitting.training_run import LOOK_EVERY, TrainingRun
from training.recipe.schema import MemberRecipe
from training.runs import CHECKPOINT

from . import FitError, checkpoint
from .curves import EpochRecord, draw_curves, write_history
from .device import Device, deterministic, device_of
from .randomness import seed_everything
from .scalars import Scalars
from .stop import Stop, StoppedBySignal, stop_on_sigterm

__all__ = ["CHECKPOINT", "FitError", "FitResult", "fit"]


@dataclass(frozen=True)
class FitResult:
    """A fitted member."""

    net: nn.Module
    """With the kept weights (their running mean where the recipe has one), in eval mode, on the device."""
    history: tuple[EpochRecord, ...]
    best_epoch: int
    """The epoch whose weights were kept, from 1."""
    validation_loss: float
    """Of that epoch; NaN where the held-out studies have no label."""
    median_error_px: float | None
    """Of that epoch, for localisers."""
    published: tuple[dict[str, str], ...] = ()
    """What published weights it started from: fields of kernels.lumbar.manifest.PublishedWeights."""


def fit(
    recipe: MemberRecipe,
    samples: Samples,
    out: Path,
    device: torch.device,
    seed: int,
    initial: dict[str, torch.Tensor] | None = None,
    only: Sequence[str] = (),
    clock: TimeLimit | None = None,
) -> FitResult:
    """Fit a member, or continue where a killed run of the same recipe and seed left `out`.

    `initial`: weights of the same network to start from, in place of published ones of its encoder.  `only`: names of
    its modules that are begun anew and fitted; all others stay as they are.  `clock`: asked before every epoch.
    Writes checkpoint.pt, history.csv and its TensorBoard twin each epoch, and curves.png at the end.  On SIGTERM the
    step is ended, checkpoint.pt written, and StoppedBySignal raised.
    Raises FitError for a loss that is not finite, CheckpointError for a checkpoint that cannot be continued, OutOfTime.
    """
    out.mkdir(parents=True, exist_ok=True)
    optimisation, steps = recipe.fitting.optimisation, samples.steps_per_epoch
    shared = device_of(device, optimisation.precision)
    identity = {"recipe": recipe.model_dump(mode="json"), "seed": seed, "steps_per_epoch": steps}
    saved = checkpoint.load(out / CHECKPOINT, identity)
    seed_everything(seed, 0)
    with deterministic(optimisation.deterministic), stop_on_sigterm() as stop, Scalars(out) as scalars:
        run = TrainingRun(
            recipe, samples, shared, pretrained=saved is None and initial is None, initial=initial, only=only
        )
        if saved is not None:
            run.restore(saved)
            if shared.first and run.history:  # a kill may have come between the two files
                write_history(out / "history.csv", run.history)
        done = len(run.history)
        begun = done * steps + (0 if run.within is None else run.within["step"])
        quiet = None if shared.first else True
        name, total = recipe.member.name, optimisation.epochs * steps

        def save() -> None:
            state = run.state()
            if shared.first:
                checkpoint.save(out / CHECKPOINT, state, identity)
            shared.barrier()  # before anyone goes on from it

        with tqdm(total=total, initial=begun, desc=name, unit="step", disable=quiet) as bar:

            def stop_if_asked(step: int) -> None:
                if _is_asked(stop, shared, step, steps):
                    save()
                    raise StoppedBySignal(
                        f"{name} was stopped after step {step} of {total}; the same command goes on there"
                    )

            for epoch in range(done + 1, optimisation.epochs + 1):
                _ask(clock, shared, run.history)
                run.epoch(epoch, seed, bar, stop_if_asked)
                save()
                if shared.first:
                    write_history(out / "history.csv", run.history)
                    scalars.add_newest(run.history)
                stop_if_asked(epoch * steps)
    kept = run.history[run.kept_epoch - 1]
    if shared.first:
        draw_curves(out / "curves.png", run.history, name, run.kept_epoch)
    result = run.kept_net(), tuple(run.history), kept.epoch, kept.validation_loss, kept.median_error_px
    return FitResult(*result, tuple(run.published))


def _is_asked(stop: Stop, device: Device, step: int, steps: int) -> bool:
    """Whether to stop after a step.  Several processes agree, not after each, as they wait for each other to do so."""
    if device.ranks == 1:
        return stop.asked
    return (step % steps % LOOK_EVERY == 0) and any(device.gather(stop.asked))


def _ask(clock: TimeLimit | None, device: Device, history: Sequence[EpochRecord]) -> None:
    """Raises OutOfTime in all processes where the clock of one says so."""
    late = False
    try:
        if clock is not None:
            clock.before_epoch(history[-1].seconds if history else None)
    except OutOfTime:
        late = True
    if any(device.gather(late)):
        raise OutOfTime
