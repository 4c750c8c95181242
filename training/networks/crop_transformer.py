"""One condition of the whole spine from crops: transformers along slices, sides and levels, as in the 133rd place.

Every slice of every crop through one image encoder; then attention among the slices of a crop, among the sides of a
level, among the levels of a side.  A crop may have any number of slices: blank ones are neither encoded nor attended
to.  Missing crops are masked; their own tokens attend to the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kernels.lumbar.labels import LEVELS
from training.networks.parts.blocks import SEVERITIES, features_of
from training.networks.parts.encoders import slice_encoder
from training.networks.parts.sequences import Transformer, sinusoids
from training.networks.parts.slices import never_empty, pick, real_slices, spread

from . import NetworkError


class Net(nn.Module):
    """Logits (B, targets, 3): view k shows target k: five levels, or five levels of the left and of the right side.

    `layers`: of the transformers along slices, sides (of two-sided conditions) and levels.
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        size_px: int,
        targets: int,
        backbone: str,
        pretrained: bool = True,
        width: int = 512,
        heads: int = 8,
        layers: Sequence[int] = (24, 12, 12),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if len(inputs) != targets or targets not in (len(LEVELS), 2 * len(LEVELS)) or len(set(inputs)) > 1:
            raise NetworkError(
                f"crop_transformer has 5 or 10 targets and one view each of as many slices, not {inputs}"
            )
        if len(layers) != 3:
            raise NetworkError(f"layers are those along slices, sides and levels: three numbers, not {list(layers)}")
        self.slices, self.sides = inputs[0], targets // len(LEVELS)
        self.encoder = slice_encoder(backbone, size_px=size_px, pretrained=pretrained)
        self.describe = nn.Linear(features_of(self.encoder, 1, size_px), width)
        self.slice_place: Tensor
        self.level_place: Tensor
        self.register_buffer("slice_place", sinusoids(self.slices, width), persistent=False)
        self.register_buffer("level_place", sinusoids(len(LEVELS), width), persistent=False)
        self.missing = nn.Parameter(torch.zeros(width))
        self.side_place = nn.Parameter(torch.zeros(self.sides, width)) if self.sides > 1 else None
        along_slices, along_sides, along_levels = layers
        self.along_slices = Transformer(width, heads, along_slices, dropout)
        self.along_sides = Transformer(width, heads, along_sides, dropout) if self.sides > 1 else None
        self.along_levels = Transformer(width, heads, along_levels, dropout)
        self.head = nn.Linear(width, SEVERITIES)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits (B, targets, 3) for `*views, present`."""
        *views, present = inputs
        images = torch.stack(views, 1).flatten(0, 1)  # (B·K, S, H, W)
        shown_slices = never_empty(real_slices(images))
        features = self.describe(self.encoder(pick(images, shown_slices)[:, None]))
        tokens = spread(features, shown_slices) + self.slice_place  # (B·K, S, width)
        counts = shown_slices.type_as(tokens)
        mixed = self.along_slices(tokens, counts) * counts[..., None]
        crops = mixed.sum(1) / counts.sum(1, keepdim=True)
        crops = crops.reshape(-1, self.sides, len(LEVELS), crops.shape[1])  # (B, sides, levels, width)
        shown = present.reshape(-1, self.sides, len(LEVELS))
        crops = torch.where(shown[..., None] > 0.5, crops, self.missing.type_as(crops))
        if self.along_sides is not None and self.side_place is not None:
            crops = crops + self.side_place[:, None].type_as(crops)
            crops = _along(self.along_sides, crops.transpose(1, 2), shown.transpose(1, 2)).transpose(1, 2)
        crops = _along(self.along_levels, crops + self.level_place, shown)
        logits: Tensor = self.head(crops).flatten(1, 2)
        return logits


def _along(transformer: nn.Module, crops: Tensor, shown: Tensor) -> Tensor:
    """A transformer along S of (B, N, S, width), masked by `shown` (B, N, S); unmasked where nothing is shown."""
    counts = torch.where(shown.amax(2, keepdim=True) > 0, shown, torch.ones_like(shown))
    mixed: Tensor = transformer(crops.flatten(0, 1), counts.flatten(0, 1)).reshape(crops.shape)
    return mixed
