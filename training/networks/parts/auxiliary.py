"""Auxiliary heads of graders: answers that only the loss of training sees, and no exported network has.

Source: the 1st place, whose severity networks also learn which slice shows the target, and to grade each of their views
by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kernels.lumbar.labels import SEVERITIES


class Headed(NamedTuple):
    """Outputs in training of a network with auxiliary heads."""

    logits: Tensor
    """(B, K, 3), the network's answer."""
    depth: Tensor | None
    """(B, S, K) logits that a slice of the first view is the one nearest to a target."""
    streams: Tensor | None
    """(B, V, K, 3) logits of each view alone."""


class AuxiliaryHeads(nn.Module):
    """One linear layer a head.  `heads`: names of training/recipe_schema/fitting.py: Auxiliary."""

    def __init__(self, heads: Sequence[str], hidden: int, views: int, targets: int) -> None:
        super().__init__()
        answers = targets * len(SEVERITIES)
        self.targets = targets
        self.depth = nn.Linear(hidden, targets) if "depth" in heads else None
        self.streams = nn.ModuleList(nn.Linear(hidden, answers) for _ in range(views)) if "streams" in heads else None

    def forward(self, logits: Tensor, tokens: Tensor, vectors: Sequence[Tensor]) -> Headed:
        """From the network's logits, the first view's slices (B, S, hidden), and a vector (B, hidden) a view."""
        depth = None if self.depth is None else self.depth(tokens)
        streams = None
        if self.streams is not None:
            by_view = [head(vector) for head, vector in zip(self.streams, vectors, strict=True)]
            streams = torch.stack(by_view, 1).unflatten(2, (self.targets, -1))
        return Headed(logits, depth, streams)


def without_heads(net: nn.Module) -> nn.Module:
    """The network, from now on without its auxiliary heads."""
    if isinstance(getattr(net, "auxiliary", None), AuxiliaryHeads):
        net.auxiliary = None  # type: ignore[assignment]
    return net
