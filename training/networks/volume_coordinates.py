"""Coordinate regression by a 3D network: a stack as one volume, then slice, row and column of each point.

Source: the 3D keypoint models of the 7th place (densenet161 made three-dimensional, a volume of 32 × 384 × 384, global
average pooling, Smooth-L1 of normalised coordinates).  Its library of 3D encoders has no licence and no upkeep; MONAI's
DenseNet and ResNet are the same architectures, parameter for parameter.  Published 2D weights can be inflated
(Carreira & Zisserman 2017).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.networks.parts.encoders import slice_encoder

from . import NetworkError
from .coordinates import CoordinateNet, PointHead, Pooling, Pyramid

DENSENETS: Mapping[str, dict[str, Any]] = {
    "densenet121": {"init_features": 64, "growth_rate": 32, "block_config": (6, 12, 24, 16)},
    "densenet161": {"init_features": 96, "growth_rate": 48, "block_config": (6, 12, 36, 24)},
}
_WIDTHS = (64, 128, 256, 512)
RESNETS: Mapping[str, dict[str, Any]] = {
    "resnet18": {"block": "basic", "layers": (2, 2, 2, 2), "block_inplanes": _WIDTHS},
    "resnet152": {"block": "bottleneck", "layers": (3, 8, 36, 3), "block_inplanes": _WIDTHS},
    # From scratch in minutes on a CPU; its first kernel covers one slice.
    "resnet10_narrow": {
        "block": "basic",
        "layers": (1, 1, 1, 1),
        "block_inplanes": (16, 32, 64, 128),
        "first": (1, 7, 7),
    },
}
HALVINGS = 5
REDUCTIONS = (2, 4, 8, 16, 32)


class VolumeNet(CoordinateNet):
    """A CoordinateNet whose views, of equally many slices, become channels of one volume.  Raises NetworkError."""

    def __init__(self, inputs: tuple[int, ...], size_px: int, coordinates: bool) -> None:
        super().__init__(inputs[0], size_px, volume=True, coordinates=coordinates)
        if len(set(inputs)) > 1:
            raise NetworkError(f"the views of one volume have equally many slices, not {inputs}")

    def add_head(
        self,
        targets: int,
        reductions: Sequence[int],
        pooling: Pooling,
        stride: int,
        width: int,
        dropout: float,
        window: float | None,
    ) -> int:
        """Pyramid, where there is one, and head on the encoder's maps of these reductions; channels of the features."""
        if pooling == "average":
            self.pyramid, width = None, self.encoder.channels[-1]
        else:
            self.pyramid = Pyramid(self.encoder.channels, reductions, stride, width, axes=3)
        self.head = PointHead(width, targets, 3, pooling, dropout, window)
        return width


class Net(VolumeNet):
    """Points (B, targets, 4) in pixels of the first view; all views have its slices, and become channels of the volume.

    `encoder`: a name of DENSENETS or RESNETS.  `pretrained`: inflate timm's weights of that name.  `slice_halvings`:
    how many of the encoder's five halvings, the last ones, halve the slices as well; stacks have few slices, and thick
    ones.  `pooling`, `stride`, `width`, `dropout`, `window`, `coordinates`: as in coordinates.Net.
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        size_px: int,
        targets: int,
        encoder: str = "densenet161",
        pretrained: bool = True,
        slice_halvings: int = HALVINGS,
        pooling: Pooling = "average",
        stride: int = 8,
        width: int = 128,
        dropout: float = 0.0,
        window: float | None = None,
        coordinates: bool = False,
    ) -> None:
        super().__init__(inputs, size_px, coordinates)
        if not 0 <= slice_halvings <= HALVINGS or inputs[0] < 2**slice_halvings:
            raise NetworkError(f"{inputs[0]} slices cannot be halved {slice_halvings} times: set slice_halvings")
        self.encoder = VolumeEncoder(encoder, len(inputs) + 3 * coordinates, pretrained, slice_halvings)
        self.add_head(targets, REDUCTIONS, pooling, stride, width, dropout, window)


class VolumeEncoder(nn.Module):
    """(B, channels, S, H, W) → five feature maps, each of half the height and width of the one before it."""

    def __init__(self, name: str, channels: int, pretrained: bool, slice_halvings: int) -> None:
        super().__init__()
        network = volume_network(name, channels)
        if pretrained:
            network.load_state_dict(inflated(name, network.state_dict()))
        stages, self.channels = (_densenet_stages if name in DENSENETS else _resnet_stages)(network)
        self.stages = nn.ModuleList(stages)
        for stage in stages[: HALVINGS - slice_halvings]:
            for module in stage.modules():
                _keep_slices(module)

    def forward(self, volume: Tensor) -> list[Tensor]:
        maps = [volume]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class HalvingMean(nn.Module):
    """Average pooling by two along slices, rows and columns, in two flat steps: CPUs have no half-precision 3D one."""

    def __init__(self) -> None:
        super().__init__()
        self.slices = True

    def forward(self, maps: Tensor) -> Tensor:
        if self.slices:
            maps = functional.avg_pool2d(maps.flatten(3), (2, 1)).unflatten(3, maps.shape[3:])
        return functional.avg_pool2d(maps.flatten(1, 2), 2).unflatten(1, maps.shape[1:3])


def volume_network(name: str, channels: int) -> nn.Module:
    """MONAI's network of that name without its classifier.  Raises NetworkError, with the known names."""
    if name not in {**DENSENETS, **RESNETS}:
        raise NetworkError(f"there is no 3D encoder '{name}'; there are: {', '.join([*DENSENETS, *RESNETS])}")
    nets = importlib.import_module("monai.networks.nets")  # takes seconds
    network: nn.Module
    if name in DENSENETS:
        network = nets.DenseNet(spatial_dims=3, in_channels=channels, out_channels=1, **DENSENETS[name])
        network.class_layers = nn.Identity()
        for number in (1, 2, 3):
            network.get_submodule(f"features.transition{number}").pool = HalvingMean()
        return network
    options = dict(RESNETS[name])
    first = options.pop("first", (7, 7, 7))
    network = nets.ResNet(
        spatial_dims=3,
        n_input_channels=channels,
        conv1_t_size=first,
        conv1_t_stride=(2, 2, 2),
        bias_downsample=False,
        feed_forward=False,
        **options,
    )
    return network


def inflated(name: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's published 2D weights, inflated to the state dict `wanted` of the 3D network.

    A kernel is repeated along the slices and divided by their number, so that a stack of equal slices gives, away from
    its ends, the 2D network's features.  Input channels beyond the first start at zero.  Raises NetworkError.
    """
    published = slice_encoder(name, size_px=224, pretrained=True).state_dict()
    weights = {}
    for key, value in wanted.items():
        flat = published[key.replace(".layers.", ".")]
        if value.dim() == 5:
            deep = flat[:, :, None].expand(-1, -1, value.shape[2], -1, -1) / value.shape[2]
            flat = torch.zeros_like(value)
            flat[:, : deep.shape[1]] = deep
        weights[key] = flat
    return weights


Stages = tuple[list[nn.Module], list[int]]
"""The five stages of an encoder, each of which halves once, and their output channels."""


def _densenet_stages(network: Any) -> Stages:
    parts = network.features
    stages: list[nn.Module] = [
        nn.Sequential(parts.conv0, parts.norm0, parts.relu0),
        nn.Sequential(parts.pool0, parts.denseblock1),
        nn.Sequential(parts.transition1, parts.denseblock2),
        nn.Sequential(parts.transition2, parts.denseblock3),
        nn.Sequential(parts.transition3, parts.denseblock4, parts.norm5, nn.ReLU()),
    ]
    norms = [parts.norm0, parts.transition1.norm, parts.transition2.norm, parts.transition3.norm, parts.norm5]
    return stages, [norm.num_features for norm in norms]


def _resnet_stages(network: Any) -> Stages:
    stages: list[nn.Module] = [
        nn.Sequential(network.conv1, network.bn1, network.act),
        nn.Sequential(network.maxpool, network.layer1),
        network.layer2,
        network.layer3,
        network.layer4,
    ]
    norms = [[part for part in stage.modules() if isinstance(part, nn.BatchNorm3d)] for stage in stages]
    return stages, [max(norm.num_features for norm in its_own) for its_own in norms]


def _keep_slices(module: nn.Module) -> None:
    """Let a part of an encoder halve height and width only."""
    if isinstance(module, HalvingMean):
        module.slices = False
    elif isinstance(module, (nn.Conv3d, nn.MaxPool3d)) and module.stride in (2, (2, 2, 2)):
        module.stride = (1, 2, 2)
