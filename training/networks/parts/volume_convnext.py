"""ConvNeXt (Liu et al. 2022) made three-dimensional: all slices of a volume are kept, height and width are reduced.

The parameters are named as timm's, so that its published weights can be inflated.  Stacks have few slices, and thick
ones: depthwise kernels reach one slice to either side, and nothing halves the slices, of which one is to be found.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Blocks and channels of each stage.
CONVNEXTS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    # From scratch in minutes on a CPU.
    "convnext_narrow": ((1, 1, 1), (16, 32, 64)),
}
KERNEL, PADDING = (3, 7, 7), (1, 3, 3)
EPSILON = 1e-6
# The share of a block that training begins with; from scratch a small network learns sooner with more.
FIRST_SCALE, FIRST_SCALE_NARROW = 1e-6, 0.1


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation of the channels of (B, C, S, H, W)."""

    def forward(self, volume: Tensor) -> Tensor:
        return super().forward(volume.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """Depthwise convolution, then two linear layers a voxel, added to the input."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), scale))
        self.conv_dw = nn.Conv3d(width, width, KERNEL, padding=PADDING, groups=width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, 4 * width), act=nn.GELU(), fc2=nn.Linear(4 * width, width))
        )

    def forward(self, volume: Tensor) -> Tensor:
        changed: Tensor = self.mlp(self.norm(self.conv_dw(volume).movedim(1, -1))) * self.gamma
        return volume + changed.movedim(-1, 1)


class Stage(nn.Module):
    """Blocks at one size; all but the first stage halve height and width before."""

    def __init__(self, before: int, width: int, blocks: int, scale: float) -> None:
        super().__init__()
        halving = [ChannelNorm(before, eps=EPSILON), nn.Conv3d(before, width, (1, 2, 2), stride=(1, 2, 2))]
        self.downsample = nn.Sequential(*halving) if before != width else nn.Identity()
        self.blocks = nn.Sequential(*(Block(width, scale) for _ in range(blocks)))

    def forward(self, volume: Tensor) -> Tensor:
        after: Tensor = self.blocks(self.downsample(volume))
        return after


class VolumeConvNeXt(nn.Module):
    """(B, channels, S, H, W) → feature maps (B, C, S, H / r, W / r) of all stages, r = `reductions`."""

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        blocks, widths = CONVNEXTS[name]
        self.channels, self.reductions = widths, [4 * 2**number for number in range(len(widths))]
        scale = FIRST_SCALE_NARROW if name == "convnext_narrow" else FIRST_SCALE
        first = nn.Conv3d(channels, widths[0], (1, 4, 4), stride=(1, 4, 4))
        self.stem = nn.Sequential(first, ChannelNorm(widths[0], eps=EPSILON))
        befores = (widths[0], *widths[:-1])
        self.stages = nn.ModuleList(
            Stage(before, width, count, scale) for before, width, count in zip(befores, widths, blocks, strict=True)
        )
        for part in self.modules():
            if isinstance(part, (nn.Conv3d, nn.Linear)):
                nn.init.trunc_normal_(part.weight, std=0.02 if scale == FIRST_SCALE else 0.05)
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]

    def forward(self, volume: Tensor) -> list[Tensor]:
        maps = [self.stem(volume)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]
