"""Fits one member: epochs, validation, checkpoints, and exact continuation of a run that was killed.

Everything random is seeded anew at the start of each epoch from (seed, epoch), so that a run that continues from the
last whole epoch draws the same numbers as one that was never interrupted: on the CPU the weights are bit-identical.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from training import networks
from training.clock import Clock
from training.data.batch import Batch, Samples
from training.recipe import MemberRecipe

from . import FitError, checkpoint
from .curves import EpochRecord, draw_curves, write_history
from .losses import LossSum, answer
from .optimise import make_ema, make_optimiser, rate_at
from .targets import known_points

CHECKPOINT = "checkpoint.pt"
GRADIENT_NORM = 1.0
# The loss is looked at every so many steps: each look makes a GPU wait.
LOOK_EVERY = 20


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


def fit(
    recipe: MemberRecipe,
    samples: Samples,
    out: Path,
    device: torch.device,
    seed: int,
    initial: dict[str, torch.Tensor] | None = None,
    only: Sequence[str] = (),
    clock: Clock | None = None,
) -> FitResult:
    """Fit a member, or continue where a killed run of the same recipe and seed left `out`.

    `initial`: weights of the same network to start from, in place of published ones of its encoder.  `only`: names of
    its modules that are begun anew and fitted; all others stay as they are.  `clock`: asked before every epoch.
    Writes checkpoint.pt and history.csv each epoch, and curves.png at the end.
    Raises FitError for a loss that is not finite, CheckpointError for a checkpoint that cannot be continued, OutOfTime.
    """
    out.mkdir(parents=True, exist_ok=True)
    identity = {"recipe": recipe.model_dump(mode="json"), "seed": seed, "steps_per_epoch": samples.steps_per_epoch}
    saved = checkpoint.load(out / CHECKPOINT, identity)
    seed_everything(seed, 0)
    run = _Run(recipe, samples, device, pretrained=saved is None and initial is None, initial=initial, only=only)
    if saved is not None:
        run.restore(saved)
    epochs, steps = recipe.fitting.optimisation.epochs, samples.steps_per_epoch
    done = len(run.history)
    with tqdm(total=epochs * steps, initial=done * steps, desc=recipe.member.name, unit="step", disable=None) as bar:
        for epoch in range(done + 1, epochs + 1):
            if clock is not None:
                clock.before_epoch(run.history[-1].seconds if run.history else None)
            seed_everything(seed, epoch)
            run.epoch(epoch, bar)
            checkpoint.save(out / CHECKPOINT, run.state(), identity)
            write_history(out / "history.csv", run.history)
    kept = run.history[run.kept_epoch - 1]
    draw_curves(out / "curves.png", run.history, recipe.member.name, run.kept_epoch)
    return FitResult(run.kept_net(), tuple(run.history), kept.epoch, kept.validation_loss, kept.median_error_px)


def seed_everything(seed: int, epoch: int) -> None:
    """Seed every global generator from a run's seed and an epoch."""
    number = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


class _Run:
    """The state of a run between epochs."""

    def __init__(
        self,
        recipe: MemberRecipe,
        samples: Samples,
        device: torch.device,
        *,
        pretrained: bool,
        initial: dict[str, torch.Tensor] | None = None,
        only: Sequence[str] = (),
    ) -> None:
        self.only = only
        self.recipe, self.samples, self.device = recipe, samples, device
        self.optimisation = recipe.fitting.optimisation
        self.net = _channels_last(networks.for_member(recipe, pretrained=pretrained).to(device))
        if initial is not None:
            begun_anew = {name: value for name, value in self.net.state_dict().items() if self._is_fitted(name)}
            self.net.load_state_dict(initial if not only else initial | begun_anew)
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad = self._is_fitted(name)
        if not any(parameter.requires_grad for parameter in self.net.parameters()):
            raise FitError(f"{recipe.member.name}: nothing is left to fit of {', '.join(only)}")
        self.optimiser = make_optimiser(self.net, self.optimisation)
        self.ema = make_ema(self.net, self.optimisation)
        self.half = device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half)
        self.history: list[EpochRecord] = []
        self.kept_epoch = 0
        self.kept: dict[str, torch.Tensor] = {}

    def _is_fitted(self, name: str) -> bool:
        return not self.only or name.partition(".")[0] in self.only

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.net if self.ema is None else self.ema.module

    def epoch(self, number: int, bar: tqdm[Any]) -> None:
        """Train and validate once; keep the weights if they are the best so far, or the last are wanted."""
        started = time.monotonic()
        first_step = (number - 1) * self.samples.steps_per_epoch
        train_loss = self._train(number, first_step, bar)
        validation_loss, error_px = self._validate()
        rate = rate_at(self.optimisation, first_step, self.samples.steps_per_epoch)
        seconds = round(time.monotonic() - started, 3)
        self.history.append(EpochRecord(number, train_loss, validation_loss, error_px, seconds, rate))
        best = min((r.validation_loss for r in self.history if not math.isnan(r.validation_loss)), default=math.nan)
        if self.optimisation.keep == "last" or math.isnan(best) or validation_loss == best:
            self.kept_epoch = number
            self.kept = {name: value.cpu().clone() for name, value in self.judged.state_dict().items()}

    def _train(self, epoch: int, first_step: int, bar: tqdm[Any]) -> float:
        """Mean training loss of an epoch."""
        self.net.train()
        for name, part in self.net.named_children():
            part.train(self._is_fitted(name))
        total = torch.zeros((), device=self.device)
        weight = torch.zeros((), device=self.device)
        count = 0
        for count, batch in enumerate(self.samples.training(epoch), 1):
            loss = self._step(batch, first_step + count - 1)
            total += loss.total.detach()
            weight += loss.weight
            bar.update()
            if count % LOOK_EVERY == 0 or count == self.samples.steps_per_epoch:
                mean = (total / weight.clamp_min(1e-12)).item()
                if not math.isfinite(mean):
                    raise FitError(
                        f"{self.recipe.member.name}: the loss is {mean} in epoch {epoch}, at step {count} or less than "
                        f"{LOOK_EVERY} before; a smaller learning rate or a warm-up is the usual cure"
                    )
                bar.set_postfix(epoch=epoch, loss=f"{mean:.4g}", refresh=False)
        if count != self.samples.steps_per_epoch:
            raise FitError(f"epoch {epoch} had {count} batches, not the {self.samples.steps_per_epoch} announced")
        return (total / weight.clamp_min(1e-12)).item()

    def _step(self, batch: Batch, step: int) -> LossSum:
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.optimisation, step, self.samples.steps_per_epoch)
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.half):
            loss, _ = answer(self.net, _at_least_two(batch), self.recipe.fitting)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss.mean).backward()
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.net.parameters(), GRADIENT_NORM)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.net, step + 1)
        return loss

    @torch.no_grad()
    def _validate(self) -> tuple[float, float | None]:
        """Mean loss over all held-out samples, and for localisers the median error in pixels."""
        net = self.judged.eval()
        total, weight, errors = 0.0, 0.0, []
        for batch in self.samples.validation():
            with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.half):
                loss, said = answer(net, batch, self.recipe.fitting)
            total += loss.total.item()
            weight += loss.weight.item()
            if self.recipe.member.role == "localiser":
                points = net.points(said, batch.present)  # type: ignore[operator]
                offset = (points - torch.nn.functional.pad(batch.target, (0, 1)))[..., 1:3]
                errors.append(offset.norm(dim=-1)[known_points(batch.target)].cpu())
        if weight and not math.isfinite(total):
            raise FitError(f"{self.recipe.member.name}: the validation loss is {total}")
        found = torch.cat(errors) if errors else torch.empty(0)
        return total / weight if weight else math.nan, found.median().item() if len(found) else None

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        return {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "history": [asdict(record) for record in self.history],
            "kept_epoch": self.kept_epoch,
            "kept": self.kept,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.history = [EpochRecord(**record) for record in state["history"]]
        self.kept_epoch, self.kept = state["kept_epoch"], state["kept"]

    def kept_net(self) -> nn.Module:
        """The network with the kept weights, in eval mode."""
        self.net.load_state_dict(self.kept)
        return self.net.eval()


def _channels_last(net: nn.Module) -> nn.Module:
    """The network with its convolutions in an order that costs them a quarter to a half less time, on any device."""
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif isinstance(part, nn.Conv3d):
            part.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return net


def _at_least_two(batch: Batch) -> Batch:
    """A batch of one sample is doubled: batch normalisation over a pooled, 1 × 1 map needs two."""
    if len(batch.target) > 1:
        return batch

    def twice(tensor: torch.Tensor | None) -> Any:
        return None if tensor is None else tensor.repeat(2, *[1] * (tensor.ndim - 1))

    return replace(
        batch,
        views=tuple(twice(view) for view in batch.views),
        whose=None if batch.whose is None else replace(batch.whose, studies=twice(batch.whose.studies)),
        **{name: twice(getattr(batch, name)) for name in ("present", "target", "distance_mm", "other")},
    )
