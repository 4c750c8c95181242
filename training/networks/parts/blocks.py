"""Parts of graders: slices → features → one vector a view → logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from training.networks.parts.auxiliary import AuxiliaryHeads, Headed
from training.networks.parts.encoders import slice_encoder
from training.networks.parts.errors import NetworkError
from training.networks.parts.sequences import Recurrent

SEVERITIES = 3


def features_of(encoder: nn.Module, channels: int, size_px: int) -> int:
    """Number of output features of an encoder, measured, as timm's num_features ignores some heads."""
    with torch.no_grad():
        return int(encoder.eval()(torch.zeros(1, channels, size_px, size_px)).shape[1])


class SliceSequence(nn.Module):
    """(B, slices, H, W) → (B, hidden): one image encoder for all slices, a GRU along them, the mean of its outputs."""

    kind: Literal["lstm", "gru"] = "gru"
    both = False

    def __init__(self, encoder: nn.Module, size_px: int, slices: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.slices = slices
        self.features = features_of(encoder, 1, size_px)
        self.along = Recurrent(self.features, hidden, layers, kind=self.kind, both=self.both)

    def _features(self, view: Tensor) -> Tensor:
        """(B, slices, features)"""
        return self.encoder(view.flatten(0, 1).unsqueeze(1)).reshape(-1, self.slices, self.features)

    def tokens(self, view: Tensor) -> Tensor:
        """(B, slices, hidden)"""
        tokens: Tensor = self.along(self._features(view))
        return tokens

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, hidden) of (B, slices, hidden)."""
        return tokens.mean(1)

    def forward(self, view: Tensor) -> Tensor:
        # In these words: a trace names values by the variables that hold them, and exported bytes stay as they are.
        features = self._features(view)
        return self.along(features).mean(1)


class ViewGrader(nn.Module):
    """Several views → one vector each → logits (B, targets, 3), by one linear layer over all vectors.

    `share` gives each view the number of its SliceSequence: views with the same number share all weights.
    A missing view (present = 0) is replaced by a learned vector of its own.  `view_dropout`: probability that a present
    view is dropped in training, which trains that vector; if all would be dropped, none is.
    `auxiliary`: names of auxiliary heads, which `outputs` has in training.
    """

    sequence = SliceSequence
    default_share: tuple[int, ...] | None = None
    """None: every view has a SliceSequence of its own."""

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        size_px: int,
        targets: int,
        backbone: str,
        pretrained: bool = True,
        share: Sequence[int] | None = None,
        hidden: int = 512,
        layers: int = 2,
        view_dropout: float = 0.0,
        encoder_options: Mapping[str, Any] | None = None,
        auxiliary: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.share = _checked(share or self.default_share or tuple(range(len(inputs))), inputs)
        self.targets = targets
        self.view_dropout = view_dropout
        self.sequences = nn.ModuleList(
            self.sequence(
                slice_encoder(backbone, size_px=size_px, pretrained=pretrained, **(encoder_options or {})),
                size_px,
                inputs[self.share.index(number)],
                hidden,
                layers,
            )
            for number in range(len(set(self.share)))
        )
        self.missing = nn.Parameter(torch.zeros(len(inputs), hidden))
        self.head = nn.Linear(len(inputs) * hidden, targets * SEVERITIES)
        # Last, so that the other parameters are those of a network without.
        self.auxiliary = AuxiliaryHeads(auxiliary, hidden, len(inputs), targets) if auxiliary else None

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits (B, targets, 3) for `*views, present`."""
        outputs = self.outputs(*inputs)
        return outputs.logits if isinstance(outputs, Headed) else outputs

    def outputs(self, *inputs: Tensor) -> Tensor | Headed:
        """Logits (B, targets, 3); in training beside the answers of the auxiliary heads, if there are any."""
        *views, present = inputs
        if self.training and self.view_dropout > 0:
            present = self._hide_some(present)
        heads = self.auxiliary if self.training else None
        vectors, tokens = [], None
        for view, (tensor, number) in enumerate(zip(views, self.share, strict=True)):
            sequence = self.sequences[number]
            if heads is not None and view == 0:
                tokens = sequence.tokens(tensor)  # type: ignore[operator]
                vector = sequence.pooled(tokens)  # type: ignore[operator]
            else:
                vector = sequence(tensor)  # called as a module, by which a trace names its values
            vectors.append(torch.where(present[:, view : view + 1] > 0.5, vector, self.missing[view]))
        logits: Tensor = self.head(torch.cat(vectors, 1)).reshape(-1, self.targets, SEVERITIES)
        return logits if heads is None else heads(logits, tokens, vectors)

    def _hide_some(self, present: Tensor) -> Tensor:
        left = present * (torch.rand_like(present) >= self.view_dropout)
        return torch.where(left.sum(1, keepdim=True) > 0, left, present)


def _checked(share: Sequence[int], inputs: tuple[int, ...]) -> tuple[int, ...]:
    if len(share) != len(inputs) or set(share) != set(range(len(set(share)))):
        raise NetworkError(f"share must number the encoder of each of {len(inputs)} views from 0 on, not {list(share)}")
    for number in set(share):
        if len({slices for slices, other in zip(inputs, share, strict=True) if other == number}) > 1:
            raise NetworkError(f"the views of encoder {number} must have equally many slices, not {inputs} in all")
    return tuple(share)
