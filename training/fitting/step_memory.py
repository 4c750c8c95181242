"""A step that fits the memory: in parts, with activation checkpointing, and one sample twice only where it must be.

Source of activation checkpointing: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016); timm's switch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from training.fitting import FitError
from training.recipe_schema.fitting import Optimisation

log = logging.getLogger("train")

SWITCH = "set_grad_checkpointing"
# torch's words where batch normalisation gets a single value, as of a pooled, 1 × 1 map of one sample.
NEEDS_TWO = "Expected more than 1 value per channel"


def checkpoint_activations(net: nn.Module, enable: bool = True) -> bool:
    """Switch it for all timm encoders of a network that can; whether there is one.

    They compute their activations again in the backward pass instead of keeping them.  Statistics of batch
    normalisation are updated twice a step, with the same values.
    """
    found = False
    for part in net.modules():
        if hasattr(part, SWITCH):
            try:
                getattr(part, SWITCH)(enable)
            except AssertionError:  # timm's answer of an architecture without it
                continue
            found = True
    return found


class StepMemory:
    """How the steps of a fit are made to fit the memory; saved with the fit, so that a resumed run goes on alike."""

    def __init__(self, name: str, net: nn.Module, optimisation: Optimisation, ranks: int) -> None:
        self.name, self.net, self.optimisation, self.ranks = name, net, optimisation, ranks
        self.rounds = optimisation.accumulate
        """Parts of a process's share of a batch."""
        self.checkpointed = optimisation.activation_checkpointing and checkpoint_activations(net)
        # Several processes must do the same, and a failed try is seen by one.
        self.in_pairs = ranks > 1
        """Whether a part of one sample is that sample twice."""

    @property
    def least(self) -> int:
        """Samples that go through the network at once at the least."""
        return 2 if self.in_pairs else 1

    def reduce(self, units: int, reason: str) -> None:
        """Twice as many rounds, up to the least that goes through at once; then activation checkpointing.

        `units`: samples of a batch, or studies where these are not split.  Raises FitError where all is done.
        """
        torch.cuda.empty_cache()
        most = -(-units // self.least)  # parts of fewer samples would take as much
        if self.rounds < most:
            self.rounds = min(2 * self.rounds, most)
            log.warning("%s: a batch does not fit the memory: in %d parts from here on", self.name, self.rounds)
            return
        if self.checkpointed or not checkpoint_activations(self.net):
            raise FitError(
                f"{self.name}: a step does not fit the memory even in {self.rounds} parts ({reason}): use a GPU with "
                "more of it, fewer slices, fewer pixels or a smaller encoder"
            )
        self.checkpointed = True
        log.warning("%s: a sample does not fit the memory: activations are checkpointed from here on", self.name)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"parts": self.rounds * self.ranks, "checkpointed": self.checkpointed, "in_pairs": self.in_pairs}

    def restore(self, state: Mapping[str, Any]) -> None:
        """As it was saved, by as many processes or others."""
        most = max(self.optimisation.batch_size // self.ranks, 1)
        self.rounds = max(self.optimisation.accumulate, min(-(-state["parts"] // self.ranks), most))
        self.in_pairs = self.ranks > 1 or state["in_pairs"]
        self.checkpointed = state["checkpointed"]
        checkpoint_activations(self.net, self.checkpointed)
