"""The work of each network, by which the smallest come first and the time left is estimated."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from training import networks
from training.fitting.export import gflops_of
from training.fitting.losses.registry import outputs_of
from training.recipe_schema.schema import MemberRecipe

# What a network takes beside its forward passes, in GFLOP of one sample.
LEAST_WORK = 3.0


def gflops(member: MemberRecipe) -> float:
    """Of one sample's forward pass, without memory or time for it where all operations allow that."""
    try:
        return _counted(member, torch.device("meta"))
    except (RuntimeError, NotImplementedError):  # what depends on values, such as which slices are blank
        return _counted(member, torch.device("cpu"))


def _counted(member: MemberRecipe, device: torch.device) -> float:
    views = [(one.slices.count, one.size_px, one.size_px) for one in member.member.inputs]
    with device:
        net = networks.for_member(member, pretrained=False).eval()
        given = [torch.ones(1, *shape) for shape in views]
        present = torch.ones(1, len(views))
    with torch.no_grad():
        return gflops_of(outputs_of(net), [*given, present])


@dataclass
class Progress:
    """Networks done and to do, and the time left."""

    works: Sequence[float]
    """GFLOP of each, in their order."""
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def line(self, name: str, what: str) -> str:
        """Of a network that ended."""
        self.done += 1
        spent_s = time.monotonic() - self.started
        rate = spent_s / sum(LEAST_WORK + one for one in self.works[: self.done])
        left_s = rate * sum(LEAST_WORK + one for one in self.works[self.done :])
        left = f", about {duration(left_s)} left" if self.done < len(self.works) else ""
        return f"{self.done}/{len(self.works)} {name}: {what}{left}"


def duration(seconds: float) -> str:
    """As seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
