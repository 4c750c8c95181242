"""Asynchronous copies to the device: the CPU prepares a batch while the GPU works on the last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# One buffer is filled while the GPU may still read the other.
SETS_FOR_GPU = 2


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device, asynchronously if pinned; other memory may be changed once this returns."""
    return tensor.to(device, non_blocking=True)


class Staging:
    """Reused buffers for batches of pixels: allocating costs several times the copy.

    For a GPU they are pinned, and not reused while a copy may be under way.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: torch.device) -> None:
        self._for_gpu = device.type == "cuda"
        self._sets = [
            [torch.empty(shape, dtype=torch.uint8, pin_memory=self._for_gpu) for shape in shapes]
            for _ in range(SETS_FOR_GPU if self._for_gpu else 1)
        ]
        self._copied: list[Any] = [None] * len(self._sets)
        self._at = 0

    def take(self, count: int) -> list[torch.Tensor]:
        """The first `count` rows of the next free buffers."""
        self._at = (self._at + 1) % len(self._sets)
        if self._copied[self._at] is not None:
            self._copied[self._at].synchronize()
        return [tensor[:count] for tensor in self._sets[self._at]]

    def sent(self) -> None:
        """Mark that the copies from the buffers taken last have been issued."""
        if self._for_gpu:
            self._copied[self._at] = torch.cuda.Event()
            self._copied[self._at].record()
