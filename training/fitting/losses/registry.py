"""Registry of losses: name → function, its options, and the networks it is for.

A loss returns a weighted sum and the sum of the weights, so that means over batches are exact.  Losses are computed in
float32, whatever dtype the network answers in.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from training.data.samples.batch import Batch
from training.recipe_schema.fitting import Fitting


class LossSum(NamedTuple):
    """Weighted sum of losses and sum of the weights; both are 0, with a gradient, for a batch without labels."""

    total: Tensor
    weight: Tensor

    @property
    def mean(self) -> Tensor:
        return self.total / self.weight.clamp_min(1e-12)


Compute = Callable[[Any, Batch, Fitting], LossSum]
"""From a network's outputs, the batch, and the recipe's `fitting`."""


@dataclass(frozen=True)
class Loss:
    """A registered loss."""

    compute: Compute
    options: tuple[str, ...] = ()
    """Names that `fitting.loss_options` may have."""
    any_grader: bool = False
    """Whether it fits the logits (B, K, 3) of every grader; other losses are named by the networks they fit."""

    def __call__(self, outputs: Any, batch: Batch, fitting: Fitting) -> LossSum:
        return self.compute(outputs, batch, fitting)


LOSSES: dict[str, Loss] = {}


def loss(
    name: str, function: Callable[..., LossSum], given: tuple[str, ...] = (), *, any_grader: bool = False
) -> Callable[[Compute], Compute]:
    """Register the decorated adapter, which calls `function` with a batch, as the loss `name` of recipes.

    Its options are the keyword-only arguments of `function`, except those `given` by the adapter.
    """
    arguments = inspect.signature(function).parameters.values()
    options = tuple(one.name for one in arguments if one.kind is one.KEYWORD_ONLY and one.name not in given)

    def register(compute: Compute) -> Compute:
        LOSSES[name] = Loss(compute, options, any_grader)
        return compute

    return register


def outputs_of(net: nn.Module) -> Callable[..., Any]:
    """What a loss is computed from: the `outputs` of a network that has them, else its forward pass."""
    return cast(Callable[..., Any], getattr(net, "outputs", net))
