"""Fits one network: epochs, validation, checkpoints, and exact resume of a run that was killed or stopped.

All random generators are seeded from (seed, epoch) at the start of each epoch, so that a run resumed from the last
whole epoch draws the same numbers as an uninterrupted one; a run that SIGTERM stopped within an epoch has its
generators in the checkpoint.  Either way, on the CPU the weights are bit-identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from training.data.samples.batch import Samples
from training.fitting.fit_state import CHECK_EVERY, FitState
from training.fitting.time_limit import OutOfTime, StopFlag, StoppedBySignal, TimeLimit, sigterm_flag
from training.recipe_schema.schema import MemberRecipe
from training.runs import CHECKPOINT, CURVES, HISTORY

from . import checkpoint
from .device import Device, deterministic, device_of
from .history import EpochRecord, Scalars, draw_curves, write_history
from .randomness import seed_everything


@dataclass(frozen=True)
class FitResult:
    """A fitted member."""

    net: nn.Module
    """With the kept weights (their EMA where the recipe has one), in eval mode, on the device."""
    history: tuple[EpochRecord, ...]
    best_epoch: int
    """The epoch whose weights were kept, from 1."""
    validation_loss: float
    """Of that epoch; NaN where the held-out studies have no label."""
    median_error_px: float | None
    """Of that epoch, for localisers."""
    published: tuple[dict[str, str], ...] = ()
    """The published weights it started from: fields of kernels.lumbar.manifest.PublishedWeights."""


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
    """Fit a network, or resume a killed run of the same recipe and seed in `out`.

    `initial`: weights of the same network to start from, in place of published ones of its encoder.  `only`: names of
    modules that are reinitialised and fitted; all others are frozen.  `clock`: checked before every epoch.
    Writes checkpoint.pt, history.csv and a TensorBoard event file each epoch, and curves.png at the end.  On SIGTERM
    the step is completed, checkpoint.pt written, and StoppedBySignal raised.
    Raises FitError for a loss that is not finite, CheckpointError for a checkpoint that cannot be resumed, OutOfTime.
    """
    out.mkdir(parents=True, exist_ok=True)
    optimisation, steps = recipe.fitting.optimisation, samples.steps_per_epoch
    shared = device_of(device, optimisation.precision)
    identity = {"recipe": recipe.model_dump(mode="json"), "seed": seed, "steps_per_epoch": steps}
    saved = checkpoint.load(out / CHECKPOINT, identity)
    seed_everything(seed, 0)
    with deterministic(optimisation.deterministic), sigterm_flag() as stop, Scalars(out) as scalars:
        run = FitState(
            recipe, samples, shared, pretrained=saved is None and initial is None, initial=initial, only=only
        )
        if saved is not None:
            run.restore(saved)
            if shared.first and run.history:  # killed between the two files
                write_history(out / HISTORY, run.history)
        done = len(run.history)
        begun = done * steps + (0 if run.within is None else run.within["step"])
        quiet = None if shared.first else True
        name, total = recipe.member.name, optimisation.epochs * steps

        def save() -> None:
            state = run.state()
            if shared.first:
                checkpoint.save(out / CHECKPOINT, state, identity)
            shared.barrier()  # before any process continues

        with tqdm(total=total, initial=begun, desc=name, unit="step", disable=quiet) as bar:

            def stop_if_requested(step: int) -> None:
                if _should_stop(stop, shared, step, steps):
                    save()
                    raise StoppedBySignal(
                        f"{name} was stopped after step {step} of {total}; the same command resumes there"
                    )

            for epoch in range(done + 1, optimisation.epochs + 1):
                _check_time(clock, shared, run.history)
                run.epoch(epoch, seed, bar, stop_if_requested)
                save()
                if shared.first:
                    write_history(out / HISTORY, run.history)
                    scalars.add_newest(run.history)
                stop_if_requested(epoch * steps)
    kept = run.history[run.kept_epoch - 1]
    if shared.first:
        draw_curves(out / CURVES, run.history, name, run.kept_epoch)
    result = run.kept_net(), tuple(run.history), kept.epoch, kept.validation_loss, kept.median_error_px
    return FitResult(*result, tuple(run.published))


def _should_stop(stop: StopFlag, device: Device, step: int, steps: int) -> bool:
    """Whether to stop after a step.  Several processes agree every CHECK_EVERY steps, as gathering makes them wait."""
    if device.ranks == 1:
        return stop.is_set
    return (step % steps % CHECK_EVERY == 0) and any(device.gather(stop.is_set))


def _check_time(clock: TimeLimit | None, device: Device, history: Sequence[EpochRecord]) -> None:
    """Raises OutOfTime in all processes if the time limit of one is reached."""
    late = False
    try:
        if clock is not None:
            clock.before_epoch(history[-1].seconds if history else None)
    except OutOfTime:
        late = True
    if any(device.gather(late)):
        raise OutOfTime
