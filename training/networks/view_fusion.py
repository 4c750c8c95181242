"""All conditions of a level from sagittal and axial crops, fused as features: model 1 of the 7th place.

Sagittal: slices as channels of one encoder for all views; its features are gated by the condition and graded, and
embedded in a small vector for each condition.  Axial: slices with their neighbours, a bidirectional GRU along them, the
mean.  The logits of both embeddings together are added to the sagittal ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.networks.parts.blocks import SEVERITIES, features_of
from training.networks.parts.encoders import slice_encoder
from training.networks.parts.sequences import Recurrent
from training.networks.parts.slices import NEIGHBOURS, with_neighbours

from . import NetworkError

GATE = 64


class Net(nn.Module):
    """Logits (B, targets, 3).  The last view is axial, the others are sagittal.

    `look_at`: for each target the index of the sagittal view that shows it.  `axial_backbone`: null =
    the same as the sagittal one.  A missing view is replaced by a learned vector.
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        size_px: int,
        targets: int,
        backbone: str,
        pretrained: bool = True,
        look_at: Sequence[int] = (1, 0, 2, 0, 0),
        axial_backbone: str | None = None,
        width: int = 512,
        embedding: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *sagittal, axial = inputs
        if not sagittal or len(set(sagittal)) > 1:
            raise NetworkError(f"view_fusion takes sagittal views of as many slices and one axial, not {inputs}")
        if len(look_at) != targets or not set(look_at) <= set(range(len(sagittal))):
            raise NetworkError(f"look_at names one of {len(sagittal)} sagittal views for each target, not {look_at}")
        self.targets, self.look_at, self.slices = targets, list(look_at), axial
        self.sagittal = slice_encoder(backbone, size_px=size_px, pretrained=pretrained, channels=sagittal[0])
        self.describe = nn.Linear(features_of(self.sagittal, sagittal[0], size_px), width)
        self.missing = nn.Parameter(torch.zeros(len(sagittal), width))
        self.condition = nn.Parameter(torch.randn(targets, GATE))
        self.gate = nn.Sequential(nn.Linear(GATE, width), nn.ReLU(), nn.Linear(width, width), nn.Sigmoid())
        self.dropout = nn.Dropout(dropout)
        self.grade = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, SEVERITIES))
        self.embed = nn.Linear(width, embedding)
        name = axial_backbone or backbone
        self.axial = slice_encoder(name, size_px=size_px, pretrained=pretrained, channels=NEIGHBOURS)
        self.along = Recurrent(features_of(self.axial, NEIGHBOURS, size_px), 2 * width, 2, kind="gru")
        self.missing_axial = nn.Parameter(torch.zeros(2 * width))
        self.fuse = nn.Linear(targets * embedding + 2 * width, targets * SEVERITIES)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits (B, targets, 3) for `*views, present`."""
        *sagittal, axial, present = inputs
        features = torch.stack(self.describe(self.sagittal(torch.cat(sagittal))).chunk(len(sagittal)))  # (V, B, width)
        shown = present[:, : len(sagittal)].transpose(0, 1)[..., None]
        features = torch.where(shown > 0.5, features, self.missing[:, None].type_as(features))
        by_target = torch.stack([features[view] for view in self.look_at], 1)  # (B, K, width)
        gated = self.dropout(by_target * self.gate(self.condition))
        fused = torch.cat([self.embed(gated).flatten(1), self._axial(axial, present[:, -1:])], 1)
        logits: Tensor = self.grade(gated) + self.fuse(fused).reshape(-1, self.targets, SEVERITIES)
        return logits

    def _axial(self, view: Tensor, present: Tensor) -> Tensor:
        images = with_neighbours(view, torch.ones_like(view[:, :, 0, 0]) > 0)
        tokens = self.axial(images.flatten(0, 1)).reshape(-1, self.slices, self.along.network.input_size)  # (B, S, F)
        pooled = self.along(tokens).mean(1)
        return torch.where(present > 0.5, pooled, self.missing_axial.type_as(pooled))
