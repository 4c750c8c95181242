"""A sum of losses with its weight, so that means over batches are exact."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LossSum(NamedTuple):
    """A sum of losses and the sum of its weights; both are 0, with a gradient, where a batch has no label at all."""

    total: Tensor
    weight: Tensor

    @property
    def mean(self) -> Tensor:
        return self.total / self.weight.clamp_min(1e-12)
