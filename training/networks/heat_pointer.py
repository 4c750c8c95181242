"""Heatmap in each slice × pointer along the slices: a 2D U-Net for row and column, a sequence model for the slice.

Source: siwooyong's and ElFazouani's RSNA 2024 solution (5th place): a U-Net with a regnety_002 encoder over
each slice and its neighbours, a second encoder with an LSTM or a transformer along the slices, and the product of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.networks.parts.blocks import features_of
from training.networks.parts.encoders import slice_encoder
from training.networks.parts.heatmaps import margin, points_from_maps, ramps
from training.networks.parts.segmentation import TIMM, build_unet
from training.networks.parts.slices import NEIGHBOURS, never_empty, pick, real_slices, spread, with_neighbours

from . import NetworkError

SIDES = ("left_", "right_")
# Width of one attention head of the transformer.
HEAD_WIDTH = 32


class HeatAndPointer(NamedTuple):
    """Outputs from which the loss is computed."""

    heat: Tensor
    """(B, S, C, h, w) logits: a heatmap of each class in each slice."""
    pointer: Tensor
    """(B, S, K) logits that a slice is that of a target."""
    real: Tensor
    """(B, S) bool: slices that are not blank; outputs of the others are undefined."""
    heat_of: Tensor
    """(K,) class of each target."""


class Net(nn.Module):
    """Points (B, targets, 4) in pixels of the first and only view, in one of its slices that are not blank.

    `encoder`: a name of segmentation_models_pytorch, or "tu-" and a timm name; `depth`: how often it halves the image.
    `decoder_channels`: one number for each doubling, coarse to fine; fewer than `depth` end below full resolution.
    `share_encoder`: the pointer uses the mean of the U-Net's deepest features, in place of its own encoder's
    (`pointer_encoder`, by default the same as `encoder`): half the cost.
    `along`: sequence model along the slices, `hidden` wide and `layers` deep.
    `place`: "per_slice" takes row and column from the chosen slice's heat; "fixed" from the mean over all slices,
    weighted by the pointer.
    `sides`: only two heats, left and right, each shared by all targets of its side: levels differ in the pointer alone.
    `prior`: initial probability of each pixel (bias of the head), so that a U-Net from scratch starts near the targets.
    `window_px`: pixels farther from the peak do not move the point, and lower its confidence where they are high; by
    default a 24th of the input.  `coordinates`: as in deeplab_heatmap.
    """

    losses = ("heat_and_pointer_bce",)

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        size_px: int,
        targets: int,
        target_names: tuple[str, ...],
        pretrained: bool = True,
        encoder: str = "tu-regnety_002",
        decoder_channels: Sequence[int] | None = None,
        depth: int = 5,
        share_encoder: bool = False,
        pointer_encoder: str | None = None,
        along: Literal["lstm", "transformer"] = "lstm",
        hidden: int = 256,
        layers: int = 1,
        dropout: float = 0.3,
        place: Literal["per_slice", "fixed"] = "per_slice",
        sides: bool = False,
        prior: float = 0.01,
        window_px: float | None = None,
        coordinates: bool = False,
    ) -> None:
        super().__init__()
        if len(inputs) != 1:
            raise NetworkError(f"heat_pointer takes one view, not {len(inputs)}")
        if place not in ("per_slice", "fixed"):
            raise NetworkError(f"place is 'per_slice' or 'fixed', not '{place}'")
        self.size_px, self.place, self.coordinates = size_px, place, coordinates
        self.window_px = window_px if window_px is not None else max(2.0, size_px / 24)
        heat_of = _sides_of(target_names) if sides else list(range(targets))
        self.register_buffer("heat_of", torch.tensor(heat_of), persistent=False)
        channels = NEIGHBOURS + 2 * coordinates
        self.unet = build_unet(encoder, channels, max(heat_of) + 1, depth, decoder_channels, pretrained)
        nn.init.constant_(self.unet.segmentation_head[0].bias, torch.logit(torch.tensor(prior)).item())
        self.pointer_encoder: nn.Module | None = None
        features = int(self.unet.encoder.out_channels[-1])
        if not share_encoder:
            name = (pointer_encoder or encoder).removeprefix(TIMM)
            self.pointer_encoder = slice_encoder(name, size_px=size_px, pretrained=pretrained)
            features = features_of(self.pointer_encoder, 1, size_px)
        self.along = _along(along, features, hidden, layers, inputs[0], dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.along.width, targets)

    def outputs(self, *inputs: Tensor) -> HeatAndPointer:
        """Heat and pointer of `view, present`."""
        view, present = inputs
        view = view * present[:, 0, None, None, None]
        real = real_slices(view)
        shown = never_empty(real)
        images = pick(with_neighbours(view, real), shown)  # (N, 3, H, W)
        if self.coordinates:
            images = torch.cat([images, *ramps(images)], 1)
        features = self.unet.encoder(images)
        heat = self.unet.segmentation_head(self.unet.decoder(features))  # (N, C, h, w)
        if self.pointer_encoder is None:
            pooled = features[-1].mean((2, 3))
        else:
            pooled = self.pointer_encoder(images[:, NEIGHBOURS // 2, None])
        sequence = spread(pooled, shown) * real[..., None]  # (B, S, F)
        along = self.dropout(self.along(sequence, shown).float())
        # In float32 like the LSTM: a trace cannot cast back to the dtype of the weights.
        pointer = functional.linear(along, self.head.weight.float(), self.head.bias.float())
        return HeatAndPointer(spread(heat, shown), pointer, real, self.heat_of)  # type: ignore[arg-type]

    def points(self, outputs: HeatAndPointer, present: Tensor) -> Tensor:
        """Points (B, targets, 4): the slice where heat × pointer is highest, the peak of the heat in it.

        Confidence: pointer × margin of the heat's peak over other peaks, as the height alone hardly distinguishes a
        neighbouring level.
        """
        heat, pointer, real, heat_of = outputs
        trust = pointer.float().sigmoid()
        peaks = heat.flatten(3).amax(3).float().sigmoid()
        score = peaks[:, :, heat_of] * trust  # (B, S, K)
        best = score.masked_fill(~real[..., None], -1.0).argmax(1)  # (B, K)
        if self.place == "fixed":
            weight = trust * real[..., None]
            weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
            maps = torch.einsum("bsk,bskyx->bkyx", weight, heat.float().sigmoid()[:, :, heat_of])
        else:
            index = (best * heat.shape[2] + heat_of)[..., None, None].expand(-1, -1, *heat.shape[3:])
            maps = heat.flatten(1, 2).gather(1, index).float().sigmoid()  # (B, K, h, w)
        found = points_from_maps(maps, present, size_px=self.size_px, slice_index=0.0, window_px=self.window_px)
        sure = margin(maps, found, self.size_px, self.window_px) * trust.gather(1, best[:, None])[:, 0]
        sure = sure * real.gather(1, best) * present[:, :1].float()
        return torch.stack([best.to(found.dtype), found[..., 1], found[..., 2], sure], 2)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.points(self.outputs(*inputs), inputs[-1])


def _sides_of(target_names: tuple[str, ...]) -> list[int]:
    sides = [next((n for n, side in enumerate(SIDES) if name.startswith(side)), None) for name in target_names]
    found = [side for side in sides if side is not None]
    if len(found) < len(sides) or len(set(found)) < len(SIDES):
        raise NetworkError(f"sides: true needs targets of both sides and no others, not {', '.join(target_names)}")
    return found


def _along(
    kind: str, features: int, hidden: int, layers: int, slices: int, dropout: float
) -> RecurrentAlong | TransformerAlong:
    if kind == "lstm":
        return RecurrentAlong(features, hidden, layers)
    if kind == "transformer":
        return TransformerAlong(features, hidden, layers, slices, dropout)
    raise NetworkError(f"along is 'lstm' or 'transformer', not '{kind}'")


class RecurrentAlong(nn.Module):
    """(B, S, features) → (B, S, width) by a bidirectional LSTM in float32, whatever the dtype of the weights.

    CPUs have no LSTM in half floats, and its cost is negligible.
    """

    def __init__(self, features: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.width = 2 * hidden
        self.lstm = nn.LSTM(features, hidden, layers, batch_first=True, bidirectional=True)

    def forward(self, sequence: Tensor, shown: Tensor) -> Tensor:
        layers, hidden = self.lstm.num_layers, self.lstm.hidden_size
        weights = [weight.float() for layer in self.lstm.all_weights for weight in layer]
        # Without an explicit state a traced LSTM keeps the device and float32 of the export (pytorch #34256).
        start = sequence.float().new_zeros(2 * layers, sequence.shape[0], hidden)
        outputs: Tensor = torch.lstm(
            sequence.float(), (start, start), weights, True, layers, 0.0, self.training, True, True
        )[0]
        return outputs


class TransformerAlong(nn.Module):
    """(B, S, features) → (B, S, width) by attention among the shown slices, with learned position embeddings."""

    def __init__(self, features: int, hidden: int, layers: int, slices: int, dropout: float) -> None:
        super().__init__()
        if hidden % HEAD_WIDTH:
            raise NetworkError(f"along: transformer needs hidden in multiples of {HEAD_WIDTH}, not {hidden}")
        self.width = hidden
        self.enter = nn.Linear(features, hidden)
        self.position = nn.Parameter(torch.randn(slices, 1, hidden) * 0.02)
        # Not batch_first: torch's fused path in eval mode cannot be traced.
        layer = nn.TransformerEncoderLayer(hidden, hidden // HEAD_WIDTH, 2 * hidden, dropout, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(hidden), enable_nested_tensor=False)

    def forward(self, sequence: Tensor, shown: Tensor) -> Tensor:
        entered = self.enter(sequence).transpose(0, 1) + self.position
        # A float mask: torch would convert a bool mask to the dtype at tracing.
        hidden = sequence.new_zeros(shown.shape).masked_fill(~shown, -torch.inf)
        outputs: Tensor = self.encoder(entered, src_key_padding_mask=hidden)
        return outputs.transpose(0, 1)
