"""One crop of several slices → one grade: slices alone, with neighbours, or together, and several ways to pool them.

Source: the graders of the 2nd place: a timm encoder on slices, then the mean or median of the slices' answers,
attention, gated attention with a branch for each class; a 3D network; the same network for crops of all conditions
("_all"); and crops of all slices, with a second head for whether a slice shows the target.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.networks.parts.blocks import SEVERITIES, features_of
from training.networks.parts.encoders import slice_encoder
from training.networks.parts.sequences import AdditiveAttention, GatedAttention
from training.networks.parts.slices import NEIGHBOURS, with_neighbours

from . import NetworkError
from .csn import CSN, ChannelSeparated

Pooling = Literal["mean", "median", "valid", "attention", "gated", "channels", "volume"]


class Net(nn.Module):
    """Logits (B, targets, 3) of one view; or, `agnostic`, of one view for each target, by the same network for all.

    `pooling`: mean, median = of the logits of all slices; valid = their mean weighted by the probability that a slice
    shows the target (a fourth logit); attention, gated = attention over features (gated: for each class); channels =
    slices are channels of one image; volume = a 3D network (training/networks/csn.py).
    `neighbours`: a slice with the ones before and after it as channels.  `sigmoid`: trained class by class (BCE); the
    outputs are log-sigmoids, whose softmax is the share of each sigmoid in their sum.
    Agnostic: a missing view has learned logits; `view_dropout` drops views in training, which trains them.
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        size_px: int,
        targets: int,
        backbone: str,
        pretrained: bool = True,
        pooling: Pooling = "attention",
        neighbours: bool = False,
        agnostic: bool = False,
        sigmoid: bool = False,
        dropout: float = 0.5,
        view_dropout: float = 0.0,
        encoder_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise NetworkError(f"pooling is one of {', '.join(get_args(Pooling))}, not '{pooling}'")
        if len(set(inputs)) > 1 or len(inputs) != (targets if agnostic else 1):
            raise NetworkError("slice_pool takes one view; agnostic, at one view a target, all of as many slices")
        if (pooling == "volume") != (backbone in CSN):
            raise NetworkError(f"volume pooling goes with one of {', '.join(CSN)}, the others with a timm encoder")
        self.pooling, self.neighbours, self.agnostic, self.sigmoid = pooling, neighbours, agnostic, sigmoid
        if pooling == "valid":
            self.losses = ("valid_slices_bce",)
        self.slices, self.view_dropout = inputs[0], view_dropout
        self.answered = 1 if agnostic else targets
        channels = self.slices if pooling == "channels" else NEIGHBOURS if neighbours else 1
        if pooling == "volume":
            self.encoder: nn.Module = ChannelSeparated(backbone, pretrained)
            features = self.encoder.features
        else:
            options = encoder_options or {}
            self.encoder = slice_encoder(backbone, size_px=size_px, pretrained=pretrained, channels=channels, **options)
            features = features_of(self.encoder, channels, size_px)
        answers = self.answered * (SEVERITIES + (pooling == "valid"))
        self.attention = AdditiveAttention(features) if pooling == "attention" else None
        self.gated = GatedAttention(features, answers) if pooling == "gated" else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, answers)
        self.missing = nn.Parameter(torch.zeros(targets, SEVERITIES)) if agnostic else None

    def outputs(self, *inputs: Tensor) -> Tensor:
        """Raw logits for `*views, present`: (B, targets, 3), or by slice (B, slices, targets, 3, valid: 4)."""
        *views, present = inputs
        if not self.agnostic:
            return self._graded(views[0])
        logits = self._graded(torch.cat(views))  # (B·K, …, 1, 3 or 4)
        by_target = torch.cat(logits.chunk(len(views)), -2)  # (B, …, K, 3 or 4)
        assert self.missing is not None  # agnostic
        if self.training and self.view_dropout:
            present = present * (torch.rand_like(present) >= self.view_dropout)
        missing = functional.pad(self.missing, (0, logits.shape[-1] - SEVERITIES)).type_as(by_target)
        shown = present[..., None] if by_target.dim() == 3 else present[:, None, :, None]
        return torch.where(shown > 0.5, by_target, missing)

    def forward(self, *inputs: Tensor) -> Tensor:
        logits = self.outputs(*inputs)
        if self.pooling == "mean":
            logits = logits.mean(1)
        elif self.pooling == "median":
            ordered = logits.float().sort(1).values
            logits = (ordered[:, (self.slices - 1) // 2] + ordered[:, self.slices // 2]) / 2
        elif self.pooling == "valid":
            shows = logits[..., SEVERITIES:].sigmoid()
            logits = (logits[..., :SEVERITIES] * shows).sum(1) / shows.sum(1).clamp_min(1e-3)
        return functional.logsigmoid(logits) if self.sigmoid else logits

    def _graded(self, view: Tensor) -> Tensor:
        """(B, answered, 3), or by slice (B, slices, answered, 3 or 4), of one view (B, slices, H, W)."""
        if self.pooling == "volume":
            return self._answers(self.encoder(view[:, None]))
        if self.pooling == "channels":
            return self._answers(self.encoder(view))
        every = torch.ones_like(view[:, :, 0, 0]) > 0
        images = with_neighbours(view, every) if self.neighbours else view[:, :, None]
        tokens = self.encoder(images.flatten(0, 1)).reshape(-1, self.slices, self.head.in_features)  # (B, S, F)
        if self.attention is not None:
            return self._answers(self.attention(tokens))
        if self.gated is not None:
            pooled = self.dropout(self.gated(tokens))
            return ((pooled * self.head.weight).sum(2) + self.head.bias).unflatten(1, (self.answered, -1))
        return self._answers(tokens)

    def _answers(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(features)).unflatten(-1, (self.answered, -1))
        return logits
