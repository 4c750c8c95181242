"""From memory to the device without waiting for it: the CPU goes on while a GPU still works on the last batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# One is filled while the GPU may still read the other.
SETS_FOR_GPU = 2


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device.  What is not pinned is copied before this returns, so that it may be changed at once."""
    return tensor.to(device, non_blocking=True)


class Staging:
    """Memory through which batches of pixels go, used again and again: fresh memory costs several times the copy.

    For a GPU it is pinned, and not handed out while a copy from it may be under way.
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
        """The first `count` places of memory that nothing is copied from any more."""
        self._at = (self._at + 1) % len(self._sets)
        if self._copied[self._at] is not None:
            self._copied[self._at].synchronize()
        return [tensor[:count] for tensor in self._sets[self._at]]

    def sent(self) -> None:
        """Say that the copies from what was taken last have been asked for."""
        if self._for_gpu:
            self._copied[self._at] = torch.cuda.Event()
            self._copied[self._at].record()
