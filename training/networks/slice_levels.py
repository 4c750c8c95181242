"""Finds the slice of each level in an axial volume: an image encoder on slices, then a sequence model along them.

Sources: the axial localiser of the 2nd place (slices with their neighbours, how far each lies from the sagittal
points beside its features, a transformer along the slices, signed distances to the levels and whether a slice shows
them) and the axial level classifier of the 7th place (CNN, bidirectional LSTM, attention; whether a slice shows a
level).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kernels.lumbar.labels import LEVELS
from training.networks.parts.blocks import features_of
from training.networks.parts.encoders import image_encoder
from training.networks.parts.sequences import Recurrent, Transformer, sinusoids
from training.networks.parts.slices import real_slices

from . import NetworkError

Answers = Literal["distance", "classes"]

# Range of predicted distances: about two levels.
REACH_MM = 75.0
# Outputs of blank slices: far from every level, showing none.
BLANK_MM = 1000.0
BLANK_LOGIT = -100.0
# Distances are less precise than logits: this much more distance lowers the odds e-fold, which separates levels and
# leaves the choice among neighbouring slices to the logits.
ROUGH_MM = 20.0
FAINTEST = 1 / 512


class Net(nn.Module):
    """Points (B, targets, 4): the slice of each target's level, in the middle of the image; other localisers refine it.

    Views after the first are landmark maps on the same slices, best one landmark a view: the maximum of a slice encodes
    its distance from the landmark.  They may be missing.  Blank slices of the first view are ignored.

    `neighbours`: 1 = the encoder gets each slice with the ones before and after it.  `along`: transformer, or lstm = a
    bidirectional LSTM and then a transformer.  `answers`: distance = signed mm to each level and a logit that the slice
    shows it; classes = the logit alone.  `by_side`: separate outputs for left and right targets of a level.
    `width`, `layers`, `heads`: of the sequence model.  `mark_dropout`: probability that a sample's landmark maps are
    dropped in training, so that the network also works without.
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        size_px: int,
        targets: int,
        target_names: Sequence[str],
        encoder: str = "resnet18d",
        pretrained: bool = True,
        neighbours: Literal[0, 1] = 1,
        along: Literal["transformer", "lstm"] = "transformer",
        answers: Answers = "distance",
        by_side: bool = False,
        width: int = 256,
        layers: int = 2,
        heads: int = 8,
        dropout: float = 0.1,
        mark_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(set(inputs)) > 1:
            raise NetworkError(f"all views of slice_levels show the same slices, not {inputs} of them")
        if along not in ("transformer", "lstm"):
            raise NetworkError(f"along is 'transformer' or 'lstm', not '{along}'")
        if answers not in ("distance", "classes"):
            raise NetworkError(f"answers is 'distance' or 'classes', not '{answers}'")
        self.losses = ("level_distance",) if answers == "distance" else ("level_classes",)
        self.slices, self.size_px, self.distances = inputs[0], size_px, answers == "distance"
        self.neighbours, self.mark_dropout = neighbours, mark_dropout
        levels = [_level_of(name) for name in target_names]
        columns = list(range(targets)) if by_side else [sorted(set(levels)).index(level) for level in levels]
        self.column: Tensor
        self.register_buffer("column", torch.tensor(columns), persistent=False)
        self.encoder = image_encoder(encoder, 1 + 2 * neighbours, pretrained)
        self.describe = nn.Linear(features_of(self.encoder, 1 + 2 * neighbours, size_px), width)
        # A convolution along slices: the maps' slope shows on which side of the landmark a slice lies.
        self.surroundings = nn.Sequential(
            nn.Conv1d(2 + 3 * (len(inputs) - 1), width, 5, padding=2), nn.GELU(), nn.Conv1d(width, width, 1)
        )
        self.register_buffer("place", sinusoids(self.slices, width), persistent=False)
        self.lstm = Recurrent(width, width, 2) if along == "lstm" else None
        self.transformer = Transformer(width, heads, layers, dropout)
        self.head = nn.Linear(width, (max(columns) + 1) * (1 + self.distances))

    def outputs(self, *inputs: Tensor) -> Tensor:
        """(B, slices, targets, 2) float32: signed distance (mm) of each level from each slice, and logit that the slice
        shows it; for classes (B, slices, targets, 1), the logit.  Blank slices: BLANK_MM and BLANK_LOGIT."""
        *views, present = inputs
        if self.training and self.mark_dropout > 0:
            kept = (torch.rand_like(present[:, :1]) >= self.mark_dropout).type_as(present)
            present = torch.cat([present[:, :1], present[:, 1:] * kept], 1)
        shown = [view * present[:, number, None, None, None] for number, view in enumerate(views)]
        real = real_slices(shown[0])
        tokens = self.describe(self._seen(shown[0], real)) + self._surroundings(shown, present, real) + self.place
        # (B, S, width) → (B, S, columns, 1 or 2) → (B, S, K, 1 or 2)
        outputs = self._along(tokens, real).float().unflatten(2, (-1, 1 + self.distances)).index_select(2, self.column)
        logit = outputs[..., -1:].masked_fill(~real[..., None, None], BLANK_LOGIT)
        if not self.distances:
            return logit
        distance_mm = REACH_MM * torch.tanh(outputs[..., :1])
        return torch.cat([distance_mm.masked_fill(~real[..., None, None], BLANK_MM), logit], 3)

    def points(self, outputs: Tensor, present: Tensor) -> Tensor:
        """Points (B, targets, 4): the slice with the highest logit minus distance penalty.

        Confidence: the probability that this slice shows the level, lowered for a large predicted distance; 0 if the
        first view is missing.
        """
        outputs = outputs.float()
        fit = outputs[..., -1]  # (B, S, K)
        away = outputs[..., 0].abs() / ROUGH_MM if self.distances else torch.zeros_like(fit)
        index = (fit - away).argmax(1, keepdim=True)
        sure = fit.gather(1, index).sigmoid() * torch.exp(1 - away.gather(1, index).clamp_min(1))
        sure = sure.squeeze(1) * present[:, :1].float()
        middle = torch.full_like(sure, (self.size_px - 1) / 2)
        return torch.stack([index.squeeze(1).type_as(sure), middle, middle, sure], 2)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.points(self.outputs(*inputs), inputs[-1])

    def _seen(self, image: Tensor, real: Tensor) -> Tensor:
        """(B, slices, features) of each slice; zeros for blank ones."""
        channels = [image]
        if self.neighbours:
            nothing = torch.zeros_like(image[:, :1])
            channels = [torch.cat([nothing, image[:, :-1]], 1), image, torch.cat([image[:, 1:], nothing], 1)]
        flat = torch.stack(channels, 2).flatten(0, 1)
        if self.training:
            # Blank slices would cost time and bias the statistics of batch normalisation.
            kept = _one_at_least(real).flatten().nonzero()[:, 0]
            some = self.encoder(flat[kept])
            features = some.new_zeros(len(flat), some.shape[1]).index_copy(0, kept, some)
        else:
            features = self.encoder(flat)
        features = features.reshape(-1, self.slices, features.shape[1])
        return features * real[..., None].type_as(features)

    def _surroundings(self, shown: Sequence[Tensor], present: Tensor, real: Tensor) -> Tensor:
        """(B, slices, width): distance of each slice and its neighbours from the landmarks; position in the volume."""
        # Cumulative sums instead of torch.arange, whose device would be fixed by the trace.
        order = torch.ones_like(shown[0][:, :, 0, 0]).cumsum(1)
        count = real.type_as(order).sum(1, keepdim=True).clamp_min(1)
        known = [order / count, (count / self.slices).expand_as(order)]
        for number, marks in enumerate(shown[1:], 1):
            # Landmark maps are exp(-d² / 2 sigma²) of the distance d: this is 1 - d / reach.
            brightest = marks.amax((2, 3)).clamp(FAINTEST, 1)
            near = 1 - torch.sqrt(torch.log(brightest) / math.log(FAINTEST))
            known += [brightest, near, present[:, number, None].expand_as(order)]
        around: Tensor = self.surroundings(torch.stack(known, 1))
        return around.transpose(1, 2)

    def _along(self, tokens: Tensor, real: Tensor) -> Tensor:
        """(B, slices, answers) from all slices together."""
        if self.lstm is not None:
            tokens = tokens + self.lstm(tokens * real[..., None].type_as(tokens))
        outputs: Tensor = self.head(self.transformer(tokens, _one_at_least(real)))
        return outputs


def _level_of(name: str) -> int:
    """Index of a target's level.  Raises NetworkError for a target without a level."""
    for number, level in enumerate(LEVELS):
        if name.endswith(level):
            return number
    raise NetworkError(f"slice_levels finds levels, and its target '{name}' names none")


def _one_at_least(real: Tensor) -> Tensor:
    """(B, slices) bool with the first slice always chosen, so that there is at least one image."""
    return torch.cat([torch.ones_like(real[:, :1]), real[:, 1:]], 1)
