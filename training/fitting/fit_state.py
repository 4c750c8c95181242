"""The state of one fit; it can be saved and restored between any two steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from kernels.lumbar.networks.loading import first_line, is_out_of_memory
from training import networks
from training.data.samples.batch import Batch, Samples
from training.fitting import FitError
from training.fitting.batch_parts import at_least_two, part_of, units_in
from training.fitting.device import Device
from training.fitting.history import EpochRecord
from training.fitting.losses import LossSum, answer
from training.fitting.losses.target_heatmaps import known_points
from training.fitting.optimise import make_ema, make_optimiser, rate_at
from training.fitting.randomness import generators, seed_everything, set_generators
from training.fitting.step_memory import NEEDS_TWO, StepMemory, checkpoint_activations
from training.networks.parts import published_weights
from training.recipe_schema.schema import MemberRecipe

# The vector width for which oneDNN blocks channels.
FEWEST_CHANNELS = 16
# The loss is checked every so many steps, as each check synchronises the GPU.
CHECK_EVERY = 20


class FitState:
    """A network, its optimiser and history, identical in all processes of `device`.

    Every process draws every batch and uses its part, so that any number of devices gives the same weights, up to
    rounding and normalisation over a batch.
    """

    def __init__(
        self,
        recipe: MemberRecipe,
        samples: Samples,
        device: Device,
        *,
        pretrained: bool,
        initial: dict[str, torch.Tensor] | None = None,
        only: Sequence[str] = (),
    ) -> None:
        self.only = only
        self.recipe, self.samples, self.device = recipe, samples, device
        self.optimisation = recipe.fitting.optimisation
        with published_weights.noted() as self.published:
            net = networks.for_member(recipe, pretrained=pretrained)
        self.net = channels_last(net.to(device.device))
        if initial is not None:
            own = self.net.state_dict()
            reinitialised = {name: value for name, value in own.items() if self._is_fitted(name)}
            heads = {name: value for name, value in own.items() if name.startswith("auxiliary.")}
            self.net.load_state_dict(heads | initial if not only else heads | initial | reinitialised)
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad = self._is_fitted(name)
        if not any(parameter.requires_grad for parameter in self.net.parameters()):
            raise FitError(f"{recipe.member.name}: nothing is left to fit of {', '.join(only)}")
        self.memory = StepMemory(recipe.member.name, self.net, self.optimisation, device.ranks)
        self.optimiser = make_optimiser(self.net, self.optimisation)
        self.module = device.prepare(self.net, self.optimiser)
        self.ema = make_ema(self.net, self.optimisation)
        self.history: list[EpochRecord] = []
        self.kept_epoch = 0
        self.kept: dict[str, torch.Tensor] = {}
        self.within: dict[str, Any] | None = None

    def _is_fitted(self, name: str) -> bool:
        return not self.only or name.partition(".")[0] in self.only

    @property
    def validated(self) -> nn.Module:
        """The network that is validated and kept: the EMA if there is one."""
        return self.net if self.ema is None else self.ema.module

    def epoch(self, number: int, seed: int, bar: tqdm[Any], after_step: Callable[[int], None]) -> None:
        """Train and validate once; keep the weights if they are the best so far, or if the recipe keeps the last.

        `after_step` is called with the number of every step of the run, from 1; it may save `state` and raise.
        """
        started = time.monotonic() - (0.0 if self.within is None else self.within["seconds"])
        seed_everything(seed, number, self.device.rank)
        first_step = (number - 1) * self.samples.steps_per_epoch
        train_loss = self._train(number, first_step, bar, started, after_step)
        validation_loss, error_px, error_mm = self._validate()
        rate = rate_at(self.optimisation, first_step, self.samples.steps_per_epoch)
        seconds = round(time.monotonic() - started, 3)
        self.history.append(EpochRecord(number, train_loss, validation_loss, error_px, seconds, rate, error_mm))
        best = min((r.validation_loss for r in self.history if not math.isnan(r.validation_loss)), default=math.nan)
        if self.optimisation.keep == "last" or math.isnan(best) or validation_loss == best:
            self.kept_epoch = number
            self.kept = {name: value.cpu().clone() for name, value in self.validated.state_dict().items()}

    def _train(
        self, epoch: int, first_step: int, bar: tqdm[Any], started: float, after_step: Callable[[int], None]
    ) -> float:
        """Mean training loss of an epoch."""
        self.net.train()
        for name, part in self.net.named_children():
            part.train(self._is_fitted(name))
        device, steps = self.device.device, self.samples.steps_per_epoch
        total, weight = torch.zeros((), device=device), torch.zeros((), device=device)
        skipped, resumed, self.within = 0 if self.within is None else self.within["step"], self.within, None
        count = 0
        for count, batch in enumerate(self.samples.training(epoch), 1):
            if count <= skipped:
                continue
            if resumed is not None:
                mine, resumed = resumed["processes"][self.device.rank], None
                total, weight = mine["total"].to(device), mine["weight"].to(device)
                set_generators(mine["generators"], device)
            loss = self.step(batch, first_step + count - 1)
            total += loss.total
            weight += loss.weight
            bar.update()
            if count % CHECK_EVERY == 0 or count == steps:
                bar.set_postfix(epoch=epoch, loss=f"{self._mean(epoch, count, total, weight):.4g}", refresh=False)
            if count < steps:
                seconds = time.monotonic() - started
                self.within = {"step": count, "seconds": seconds, "total": total, "weight": weight}
                after_step(first_step + count)
        self.within = None
        if count != steps:
            raise FitError(f"epoch {epoch} had {count} batches, not the {steps} announced")
        return self._mean(epoch, count, total, weight)

    def _mean(self, epoch: int, count: int, total: torch.Tensor, weight: torch.Tensor) -> float:
        """Mean loss so far.  Raises FitError if it is not finite."""
        total, weight = self.device.sum(total, weight)
        mean = (total / weight.clamp_min(1e-12)).item()
        if not math.isfinite(mean):
            raise FitError(
                f"{self.recipe.member.name}: the loss is {mean} in epoch {epoch}, at step {count} or less than "
                f"{CHECK_EVERY} before; a smaller learning rate or a warm-up is the usual cure"
            )
        return mean

    def step(self, batch: Batch, step: int) -> LossSum:
        """One optimiser step on this process's part of a batch, in rounds; the loss of that part.

        Where a round does not fit the memory, StepMemory.reduce decides how this step and all later ones need less.
        Raises FitError where nothing helps.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.optimisation, step, self.samples.steps_per_epoch)
        while isinstance(sums := self._gradients(batch), str):  # after the exception, which held tensors of its frames
            self.optimiser.zero_grad(set_to_none=True)
            self.memory.reduce(units_in(batch, self.optimisation.whole_studies), sums)
        done = LossSum(*(torch.stack(column).sum() for column in zip(*sums, strict=True)))
        self.device.scaler.unscale_(self.optimiser)
        if len(sums) * self.device.ranks > 1:
            (weight,) = self.device.sum(done.weight)
            factor = self.device.ranks * len(batch.target) / weight.clamp_min(1e-12)
            for parameter in self.net.parameters():
                if parameter.grad is not None:
                    parameter.grad *= factor
        if self.optimisation.gradient_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.optimisation.gradient_norm)
        self.device.step(self.optimiser)
        if self.ema is not None:
            self.ema.update(self.net, step + 1)
        return done

    def _gradients(self, batch: Batch) -> list[LossSum] | str:
        """Accumulate the gradients of a batch; the losses of its rounds, or in words that the memory is too small."""
        self.optimiser.zero_grad(set_to_none=True)
        rounds, whole = self.memory.rounds, self.optimisation.whole_studies
        parts = rounds * self.device.ranks
        sums = []
        try:
            for number in range(rounds):
                loss = self._loss(part_of(batch, self.device.rank * rounds + number, parts, whole))
                # The weight of the whole batch is known after its last part only.
                share = loss.mean if parts == 1 else loss.total / len(batch.target)
                self.device.backward(share, self.module, last=number == rounds - 1)
                sums.append(LossSum(loss.total.detach(), loss.weight.detach()))
        except RuntimeError as error:
            if not is_out_of_memory(error) or self.device.ranks > 1:  # the other processes wait for its gradients
                raise
            return first_line(error)
        return sums

    def _loss(self, part: Batch) -> LossSum:
        with self.device.autocast():
            if len(part.target) == 1 and not self.memory.in_pairs:
                try:
                    return answer(self.module, part, self.recipe.fitting)[0]
                except ValueError as error:
                    if NEEDS_TWO not in str(error):
                        raise
                    self.memory.in_pairs = True
            loss, _ = answer(self.module, at_least_two(part), self.recipe.fitting)
        return LossSum(0.5 * loss.total, 0.5 * loss.weight) if len(part.target) == 1 else loss

    @torch.no_grad()
    def _validate(self) -> tuple[float, float | None, float | None]:
        """Mean loss over all held-out samples, and for localisers the median error in pixels, and in mm where known."""
        self.device.align(self.validated)
        net, whole = self.validated.eval(), self.optimisation.whole_studies
        found = []
        for number, batch in enumerate(self.samples.validation()):
            if number % self.device.ranks != self.device.rank:
                continue
            count = min(self.memory.rounds, units_in(batch, whole))
            parts = [self._validate_part(net, part_of(batch, part, count, whole)) for part in range(count)]
            totals, weights, errors = zip(*parts, strict=True)
            found.append((number, sum(totals), sum(weights), torch.cat(errors, dim=1)))
        # Summed in the order of the batches, whichever process validated them.
        found = sorted(sum(self.device.gather(found), []), key=lambda one: one[0])
        total, weight = sum(one[1] for one in found), sum(one[2] for one in found)
        if weight and not math.isfinite(total):
            raise FitError(f"{self.recipe.member.name}: the validation loss is {total}")
        medians = torch.cat([torch.empty(2, 0), *[one[3] for one in found]], dim=1)
        error_px, error_mm = medians.median(dim=1).values.tolist() if medians.numel() else (None, None)
        is_known = error_mm is not None and not math.isnan(error_mm)
        return total / weight if weight else math.nan, error_px, error_mm if is_known else None

    def _validate_part(self, net: nn.Module, part: Batch) -> tuple[float, float, torch.Tensor]:
        """Sum and weight of the loss; (2, N) errors of the known points in pixels and mm."""
        with self.device.autocast():
            loss, outputs = answer(net, part, self.recipe.fitting)
        errors = torch.empty(2, 0)
        if self.recipe.member.role == "localiser":
            points = net.points(outputs, part.present)  # type: ignore[operator]
            offset = (points - torch.nn.functional.pad(part.target, (0, 1)))[..., 1:3]
            error_px = offset.norm(dim=-1)  # (B, K)
            error_mm = error_px * (torch.nan if part.pixel_mm is None else part.pixel_mm[:, None])
            errors = torch.stack([error_px, error_mm])[:, known_points(part.target)].cpu()
        return loss.total.item(), loss.weight.item(), errors

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, in every process; a collective call."""
        within = None
        if self.within is not None:
            mine = {name: self.within[name].cpu() for name in ("total", "weight")}
            mine["generators"] = generators(self.device.device)
            within = {**self.within, "processes": self.device.gather(mine)}
            del within["total"], within["weight"]
        return {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.device.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "history": [asdict(record) for record in self.history],
            "kept_epoch": self.kept_epoch,
            "kept": self.kept,
            "within": within,
            "memory": self.memory.state(),
            "published": self.published,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint.  Raises FitError for one saved within an epoch by another number of processes."""
        within = state["within"]
        if within is not None and len(within["processes"]) != self.device.ranks:
            raise FitError(
                f"{self.recipe.member.name} was stopped within an epoch on {len(within['processes'])} devices: resume "
                f"with as many, not {self.device.ranks}, or remove the folder to start anew"
            )
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.device.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.history = [EpochRecord(**record) for record in state["history"]]
        self.kept_epoch, self.kept = state["kept_epoch"], state["kept"]
        self.within, self.published = within, state["published"]
        if "memory" in state:  # checkpoints of an earlier version lack it
            self.memory.restore(state["memory"])

    def kept_net(self) -> nn.Module:
        """The network with the kept weights, in eval mode and without activation checkpointing."""
        self.net.load_state_dict(self.kept)
        return self.newest_net()

    def newest_net(self) -> nn.Module:
        """The network with the weights of the last step, otherwise as kept_net; it may be traced."""
        checkpoint_activations(self.net, False)
        return self.net.eval()


def channels_last(net: nn.Module) -> nn.Module:
    """The network with channels-last convolutions, which take a quarter to a half less time on any device.

    But for convolutions of single pixels with a stride, of 2 to 15 channels, as the first one of fastvit is: in this
    layout their backward pass in oneDNN (3.12, of torch 2.13 for CPUs) writes beyond its memory.
    """
    for part in net.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.stride != (1, 1):
            if not 1 < part.in_channels < FEWEST_CHANNELS:
                part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif isinstance(part, nn.Conv2d):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif isinstance(part, nn.Conv3d):
            part.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return net
