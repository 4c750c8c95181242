"""Sequence models that can be traced: recurrent, transformers with masks, attention pooling."""

from __future__ import annotations

import math
from typing import Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

# Finite: without fused attention timm adds the mask to the logits.
HIDDEN = -1e4


class Recurrent(nn.Module):
    """(B, S, features) → (B, S, width): an LSTM or GRU; `both` directions share the width."""

    def __init__(
        self, features: int, width: int, layers: int = 1, *, kind: Literal["lstm", "gru"] = "lstm", both: bool = True
    ) -> None:
        super().__init__()
        network = nn.LSTM if kind == "lstm" else nn.GRU
        self.network = network(features, width // (1 + both), layers, batch_first=True, bidirectional=both)
        self.states = layers * (1 + both)

    def forward(self, tokens: Tensor) -> Tensor:
        # Without an explicit state a traced network keeps the device of the export (pytorch #34256).
        start = tokens.new_zeros(self.states, tokens.shape[0], self.network.hidden_size)
        state = (start, start) if isinstance(self.network, nn.LSTM) else start
        outputs: Tensor = self.network(tokens, state)[0]
        return outputs


class Transformer(nn.Module):
    """(B, S, width) and mask (B, S; 0 = ignored) → (B, S, width): pre-norm blocks and a final norm."""

    def __init__(self, width: int, heads: int, layers: int, dropout: float = 0.0, mlp_ratio: float = 2.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=True, proj_drop=dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, counts: Tensor) -> Tensor:
        mask = ((1 - counts.type_as(tokens)) * HIDDEN)[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, attn_mask=mask)
        normalised: Tensor = self.norm(tokens)
        return normalised


class AdditiveAttention(nn.Module):
    """(B, S, features) → (B, features): additive attention pooling (Bahdanau et al. 2015)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(features, features), nn.Tanh(), nn.Linear(features, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.score(tokens).softmax(1) * tokens).sum(1)


class GatedAttention(nn.Module):
    """(B, S, features) → (B, answers, features): gated attention pooling, separate for each answer.

    Source: Ilse et al. 2018, with a branch for each class as in CLAM (Lu et al. 2021).
    """

    def __init__(self, features: int, answers: int, hidden: int = 256) -> None:
        super().__init__()
        self.content, self.gate = nn.Linear(features, hidden), nn.Linear(features, hidden)
        self.score = nn.Linear(hidden, answers)

    def forward(self, tokens: Tensor) -> Tensor:
        share = self.score(torch.tanh(self.content(tokens)) * torch.sigmoid(self.gate(tokens))).softmax(1)
        return torch.einsum("bsa,bsf->baf", share, tokens)


def sinusoids(count: int, width: int) -> Tensor:
    """(count, width) sinusoidal position encoding (Vaswani et al. 2017)."""
    angle = torch.arange(count)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)
