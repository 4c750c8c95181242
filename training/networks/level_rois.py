"""One condition at all five levels from small 3D regions: model 2 of the 7th place.

All levels' regions share one encoder; a bidirectional LSTM runs along the levels.  For axial targets a second branch,
with an encoder and a GRU along the slices, is concatenated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kernels.lumbar.labels import LEVELS
from training.networks.parts.blocks import SEVERITIES, features_of
from training.networks.parts.encoders import slice_encoder
from training.networks.parts.sequences import Recurrent

from . import NetworkError

Branch = Literal["plain", "slices", "levels"]


class Net(nn.Module):
    """Logits (B, 5, 3), a level each.  Views come in branches of five, one a level from L1/L2 down.

    `branches`: plain = slices are channels; slices = slices one by one, a bidirectional GRU of two layers along them,
    the mean; levels = as plain, then a bidirectional LSTM of two layers along the levels.  Each branch ends in a vector
    of `embedding`; a missing view is replaced by a learned one.
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        size_px: int,
        targets: int,
        backbone: str,
        pretrained: bool = True,
        branches: Sequence[Branch] = ("levels",),
        embedding: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if targets != len(LEVELS) or len(inputs) != len(LEVELS) * len(branches):
            raise NetworkError(f"level_rois has 5 targets and 5 views a branch, not {targets} and {len(inputs)} in all")
        if not set(branches) <= set(get_args(Branch)):
            raise NetworkError(f"a branch is one of {', '.join(get_args(Branch))}; not all of {list(branches)} are")
        counts = [inputs[number * len(LEVELS)] for number in range(len(branches))]
        self.branches = nn.ModuleList(
            _Branch(kind, slices, size_px, backbone, pretrained, embedding)
            for kind, slices in zip(branches, counts, strict=True)
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(embedding * len(branches), SEVERITIES))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits (B, 5, 3) for `*views, present`."""
        *views, present = inputs
        vectors = []
        for number, branch in enumerate(self.branches):
            part = slice(number * len(LEVELS), (number + 1) * len(LEVELS))
            vectors.append(branch(torch.stack(views[part], 1), present[:, part]))
        logits: Tensor = self.head(torch.cat(vectors, 2))  # (B, 5, embedding · branches) → (B, 5, 3)
        return logits


class _Branch(nn.Module):
    """(B, 5, slices, H, W) → (B, 5, embedding)."""

    def __init__(
        self, kind: Branch, slices: int, size_px: int, backbone: str, pretrained: bool, embedding: int
    ) -> None:
        super().__init__()
        self.by_slice = kind == "slices"
        channels = 1 if self.by_slice else slices
        self.encoder = slice_encoder(backbone, size_px=size_px, pretrained=pretrained, channels=channels)
        features = features_of(self.encoder, channels, size_px)
        self.slices = Recurrent(features, embedding, 2, kind="gru") if self.by_slice else None
        self.describe = None if self.by_slice else nn.Linear(features, embedding)
        self.levels = Recurrent(embedding, embedding, 2) if kind == "levels" else None
        self.missing = nn.Parameter(torch.zeros(embedding))

    def forward(self, views: Tensor, present: Tensor) -> Tensor:
        levels = views.shape[1]
        if self.slices is not None:
            tokens = self.encoder(views.flatten(0, 2)[:, None]).reshape(
                -1, views.shape[2], self.slices.network.input_size
            )
            vectors = self.slices(tokens).mean(1)
        else:
            assert self.describe is not None  # one of the two
            vectors = self.describe(self.encoder(views.flatten(0, 1)))
        vectors = vectors.reshape(-1, levels, vectors.shape[1])  # (B, 5, embedding)
        vectors = torch.where(present[..., None] > 0.5, vectors, self.missing.type_as(vectors))
        return vectors if self.levels is None else self.levels(vectors)
