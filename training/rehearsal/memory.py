"""Memory of a training step: measured on a GPU; estimated on a CPU, from what autograd keeps for the backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from training.recipe_schema.fitting import Precision

GIB = 2**30
# Of a parameter: itself, its gradient and the two moments of AdamW, in single precision; and its copy in half.
BYTES_A_PARAMETER, BYTES_OF_COPY = 16, 2


@dataclass
class Saved:
    """Storages that autograd keeps, each counted once."""

    storages: dict[int, int] = field(default_factory=dict)
    """Address → bytes."""

    @property
    def bytes(self) -> int:
        """Of all."""
        return sum(self.storages.values())


@contextmanager
def saved_bytes(net: nn.Module) -> Iterator[Saved]:
    """Counts what the forward passes inside it save, without the network's own weights."""
    own = {one.untyped_storage().data_ptr() for one in (*net.parameters(), *net.buffers())}
    saved = Saved()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def sample_bytes(saved: Saved, samples: int, parameters: int, precision: Precision, *, is_mixed: bool) -> float:
    """What autograd keeps of one sample in this precision, from what it saved of some, in single precision or mixed."""
    if is_mixed:  # the half copies of the weights are saved, too
        return max(saved.bytes - BYTES_OF_COPY * parameters, 0) / samples
    return saved.bytes / samples / (1 if precision == "float32" else 2)


@dataclass(frozen=True)
class Estimate:
    """What a step needs on a GPU."""

    parameters: int
    sample_bytes: float
    """What autograd keeps of one sample, in the precision of the training."""
    precision: Precision
    least: int = 1
    """Samples that go through the network at once at the least."""

    def gib(self, samples: int, accumulate: int) -> float:
        """Of a batch in so many parts.  Workspaces of the libraries are not in it."""
        half = self.precision != "float32"
        weights = self.parameters * (BYTES_A_PARAMETER + BYTES_OF_COPY * half)
        return (weights + max(math.ceil(samples / accumulate), self.least) * self.sample_bytes) / GIB

    def accumulate_for(self, samples: int, most: int, published: int, memory_gb: float) -> int:
        """The least number of parts, from the published one to `most`, that fits; `most` where none does."""
        fits = (parts for parts in range(published, most + 1) if self.gib(samples, parts) <= memory_gb)
        return next(fits, max(most, published))
