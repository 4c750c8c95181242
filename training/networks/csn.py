"""Channel-separated 3D networks: a residual network whose 3 × 3 × 3 convolutions filter one channel each.

Source: ir-CSN of Tran et al. 2019, a grader of the 2nd place.  No upkept library has it.  Slices are few and thick, so
only height and width are halved.  Pretrained weights are read from PRETRAINED_DIR, with the parameter names of this
module; no download is published.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from training.networks.parts.encoders import local_state, reading
from training.networks.parts.published_weights import Offer, weights_of

from . import NetworkError

EXPANSION = 4
# Name → (blocks of each stage, channels of the stem and of the first stage's middle).
CSN: Mapping[str, tuple[tuple[int, ...], int]] = {
    "csn_r101": ((3, 4, 23, 3), 64),
    "csn_r50": ((3, 4, 6, 3), 64),
    # From scratch in minutes on a CPU.
    "csn_tiny": ((1, 1, 1), 8),
}


class Bottleneck(nn.Module):
    """1 × 1 × 1 down, depthwise 3 × 3 × 3, 1 × 1 × 1 up, and the residual."""

    def __init__(self, channels: int, middle: int, stride: int) -> None:
        super().__init__()
        wide = middle * EXPANSION
        self.narrow = _conv(channels, middle, 1)
        self.look = _conv(middle, middle, 3, stride, groups=middle)
        self.widen = _conv(middle, wide, 1)
        self.shortcut = nn.Identity() if channels == wide and stride == 1 else _conv(channels, wide, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, volume: Tensor) -> Tensor:
        inner = self.relu(self.narrow(volume))
        inner = self.widen(self.relu(self.look(inner)))
        answer: Tensor = self.relu(inner + self.shortcut(volume))
        return answer


class ChannelSeparated(nn.Module):
    """(B, 1, S, H, W) → (B, features), the mean over slices, rows and columns.  Raises NetworkError."""

    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__()
        if name not in CSN:
            raise NetworkError(f"there is no channel-separated network '{name}'; there are: {', '.join(CSN)}")
        blocks, width = CSN[name]
        self.stem = nn.Sequential(
            _conv(1, width, (3, 7, 7), 2), nn.ReLU(inplace=True), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        )
        parts: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(blocks):
            for number in range(count):
                stride = 2 if stage and not number else 1
                parts.append(Bottleneck(channels, width * 2**stage, stride))
                channels = width * 2**stage * EXPANSION
        self.stages = nn.Sequential(*parts)
        self.features = channels
        offer = Offer(name)
        if pretrained and (path := weights_of(offer)) is not None:
            with reading(offer, path):
                self.load_state_dict(local_state(path))

    def forward(self, volume: Tensor) -> Tensor:
        maps: Tensor = self.stages(self.stem(volume))  # (B, features, S, h, w)
        return maps.mean((2, 3, 4))


def _conv(channels: int, out: int, size: int | tuple[int, int, int], stride: int = 1, groups: int = 1) -> nn.Module:
    kernel = (size,) * 3 if isinstance(size, int) else size
    padding = tuple(one // 2 for one in kernel)
    layer = nn.Conv3d(channels, out, kernel, (1, stride, stride), padding, groups=groups, bias=False)  # type: ignore[arg-type]
    return nn.Sequential(layer, nn.BatchNorm3d(out))
