"""What a loss can be at best: of any answers, and of answers that do not depend on the sample.

The first is the floor of the loss: soft targets have an entropy.  The second is what a network reaches that does not
look at its images.  Both are found by fitting the answers themselves, so that they hold for every registered loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from training.data.samples.batch import Batch
from training.fitting.losses import loss_of
from training.networks.coordinates import Places
from training.recipe_schema.fitting import Fitting

# Adam brings answers of any scale near, L-BFGS to the end.
NEAR, RATE = 60, 2.0
CLOSE, HISTORY = 30, 4
# Networks mark blank slices by large values, which the loss leaves out.
FARTHEST = 10.0


def best_loss(outputs: Any, batch: Batch, fitting: Fitting, *, constant: bool) -> float:
    """The lowest mean loss of a batch over all outputs of the network; `constant`: those equal for all its samples.

    A constant map is also equal for all its pixels, as a convolution that sees nothing knows no places.
    `outputs`: those of the network, at which the search begins; a tensor, or a NamedTuple of tensors or None, of which
    those of floats are free.
    """
    parts: list[Tensor | None] = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    free = [_start(one, constant) if one is not None and one.is_floating_point() else None for one in parts]
    parameters = [one for one in free if one is not None]
    rebuild = _rebuild(outputs, parts, free)
    # L-BFGS takes curvatures below 1e-10 for none, and the mean over a map has smaller ones.
    scale = sum(one.numel() for one in parameters)
    best = math.inf

    def loss() -> Tensor:
        nonlocal best
        for one in parameters:
            one.grad = None
        scaled = scale * loss_of(rebuild(), batch, fitting).mean
        scaled.backward()
        if math.isfinite(scaled.item()):
            best = min(best, scaled.item() / scale)
        return scaled.detach()

    adam = torch.optim.Adam(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, NEAR)
    for _ in range(NEAR):
        adam.step(loss)
        schedule.step()
    torch.optim.LBFGS(
        parameters,
        max_iter=CLOSE,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=0.0,
        tolerance_change=0.0,
    ).step(loss)
    return best


def _start(part: Tensor, constant: bool) -> Tensor:
    start = part.detach().float().clamp(-FARTHEST, FARTHEST)
    if constant:
        is_map = part.dim() >= 4 and part.shape[-1] == part.shape[-2]
        start = start.mean((0, -2, -1) if is_map else 0, keepdim=True)
    # L-BFGS flattens gradients, so they must not be channels-last.
    return start.clone(memory_format=torch.contiguous_format).requires_grad_()


def _rebuild(outputs: Any, parts: Sequence[Tensor | None], free: Sequence[Tensor | None]) -> Callable[[], Any]:
    """Makes outputs of the free tensors, repeated over the batch where they are constant."""

    def rebuild() -> Any:
        pairs = zip(parts, free, strict=True)
        made = [part if part is None or one is None else one.expand_as(part) for part, one in pairs]
        if isinstance(outputs, Tensor):
            return made[0]
        answer = type(outputs)(*made)
        if isinstance(answer, Places):  # its attention is a distribution
            grid = answer.attention.shape[2:]
            answer = answer._replace(attention=answer.attention.flatten(2).log_softmax(2).unflatten(2, grid))
        return answer

    return rebuild
