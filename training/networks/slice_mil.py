"""Severity from one or several views: a CNN a slice, a bidirectional LSTM along the slices, attention over them.

Source: the 1st place's severity networks: a ConvNeXt-small or EfficientNetV2-s a slice, an LSTM of two layers,
attention MIL (Ilse et al. 2018) over five slices, and auxiliary heads for the depth and for each view.  It found a
Mamba or self-attention in place of the LSTM to be worse.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from training.networks.parts.blocks import SliceSequence, ViewGrader
from training.networks.parts.sequences import GatedAttention


class AttendedSequence(SliceSequence):
    """(B, slices, H, W) → (B, hidden): one image encoder for all slices, an LSTM in both directions, attention."""

    kind: Literal["lstm", "gru"] = "lstm"
    both = True

    def __init__(self, encoder: nn.Module, size_px: int, slices: int, hidden: int, layers: int) -> None:
        super().__init__(encoder, size_px, slices, hidden, layers)
        self.attention = GatedAttention(hidden, 1, hidden)

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, hidden) of (B, slices, hidden)."""
        attended: Tensor = self.attention(tokens)
        return attended[:, 0]

    def forward(self, view: Tensor) -> Tensor:
        return self.pooled(self.tokens(view))


class Net(ViewGrader):
    """Logits (B, targets, 3); each view has its own encoder, except those that `share` gives one in common."""

    sequence = AttendedSequence
