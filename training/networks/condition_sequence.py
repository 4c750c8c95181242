"""The five conditions of a level as a sequence: the stage-2 network of the 5th place.

One encoder for all slices of all crops, a bidirectional LSTM and attention along the slices of a crop, a bidirectional
LSTM across the conditions of the level, whose grades are correlated; heads by condition group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kernels.lumbar.labels import GROUPS, group_of
from training.networks.parts.blocks import SEVERITIES, features_of
from training.networks.parts.encoders import slice_encoder
from training.networks.parts.sequences import AdditiveAttention, Recurrent

from . import NetworkError

Order = Literal["conditions", "conditions_skip", "slices"]


class Net(nn.Module):
    """Logits (B, targets, 3): view k shows target k; all have as many slices.

    `along`: conditions = across the conditions; conditions_skip = the same, added to what came in; slices = one LSTM
    over all slices of all conditions instead of both.  A missing view is replaced by a learned vector.
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        size_px: int,
        targets: int,
        target_names: Sequence[str],
        backbone: str,
        pretrained: bool = True,
        along: Order = "conditions",
        width: int = 512,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if len(inputs) != targets or len(set(inputs)) > 1:
            raise NetworkError(f"condition_sequence has one view a target, all of as many slices, not {inputs}")
        if along not in get_args(Order):
            raise NetworkError(f"along is one of {', '.join(get_args(Order))}, not '{along}'")
        self.slices, self.along = inputs[0], along
        self.encoder = slice_encoder(backbone, size_px=size_px, pretrained=pretrained)
        features = features_of(self.encoder, 1, size_px)
        self.by_slice = Recurrent(features, width)
        self.pool = AdditiveAttention(width)
        self.by_condition = Recurrent(width, width) if along != "slices" else None
        self.missing = nn.Parameter(torch.zeros(features))
        groups = [group_of(name) for name in target_names]
        self.head_of = [GROUPS.index(group) for group in groups]
        self.heads = nn.ModuleList(nn.Sequential(nn.Dropout(dropout), nn.Linear(width, SEVERITIES)) for _ in GROUPS)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits (B, targets, 3) for `*views, present`."""
        *views, present = inputs
        images = torch.stack(views, 1)  # (B, K, S, H, W)
        features = self.encoder(images.flatten(0, 2)[:, None])  # (B·K·S, F)
        features = features.reshape(-1, len(views), self.slices, features.shape[1])  # (B, K, S, F)
        features = torch.where(present[..., None, None] > 0.5, features, self.missing.type_as(features))
        if self.along == "slices":
            tokens = self.by_slice(features.flatten(1, 2)).reshape(-1, self.slices, self.pool.score[0].in_features)
        else:
            tokens = self.by_slice(features.flatten(0, 1))  # (B·K, S, width)
        vectors = self.pool(tokens).reshape(-1, len(views), tokens.shape[2])  # (B, K, width)
        if self.by_condition is not None:
            mixed = self.by_condition(vectors)
            vectors = vectors + mixed if self.along == "conditions_skip" else mixed
        return torch.stack([self.heads[head](vectors[:, number]) for number, head in enumerate(self.head_of)], 1)
