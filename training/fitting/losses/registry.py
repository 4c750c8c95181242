"""Losses by name.  Each answers a sum and the weight of what was summed, so that means over batches are exact.

Losses are computed in float32 whatever the network answers in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from training.data.samples.batch import Batch
from training.fitting.losses import coordinate_losses, grade_losses, map_losses, slice_losses
from training.fitting.losses.loss_sum import LossSum
from training.fitting.losses.target_heatmaps import gaussian_heatmaps, known_points
from training.recipe.fitting import Fitting


def heatmap_mse(
    maps: Tensor, points: Tensor, *, size_px: int, sigma_px: float, known: Tensor | None = None, foreground: float = 0.0
) -> LossSum:
    """Mean squared error of maps (B, K, h, w) against gaussians of height 1 at points (B, K, 3), over known points.

    `foreground` = 0 is the published loss, every pixel alike.  A gaussian covers few pixels, so that an untrained
    network gains most of this loss by answering zero; if asked, a pixel weighs 1 + foreground × its target value.
    `known` (B, K) leaves more landmarks out than those that are NaN.
    """
    target = gaussian_heatmaps(points, size_px=size_px, map_px=maps.shape[-1], sigma_px=sigma_px)
    counted = known_points(points) if known is None else known_points(points) & known
    error = (maps.float() - target) ** 2
    if foreground > 0:
        error = error * (1 + foreground * target)
    total = (error.mean((2, 3)) * counted).sum()
    return LossSum(total, counted.sum().to(total.dtype))


def _heatmap_loss(outputs: Tensor, batch: Batch, fitting: Fitting) -> LossSum:
    shown = (batch.present[:, :1] > 0).expand(batch.target.shape[:2])
    size_px = batch.views[0].shape[-1]
    sigma_px, foreground = fitting.sigma_px, fitting.foreground
    return heatmap_mse(outputs, batch.target, size_px=size_px, sigma_px=sigma_px, known=shown, foreground=foreground)


LOSSES: dict[str, Callable[[Any, Batch, Fitting], LossSum]] = {
    "heatmap_mse": _heatmap_loss,
    **coordinate_losses.LOSSES,
    **map_losses.LOSSES,
    **slice_losses.LOSSES,
    **grade_losses.LOSSES,
}


def answer(net: nn.Module, batch: Batch, fitting: Fitting) -> tuple[LossSum, Any]:
    """Run a network on a batch; the loss that the recipe names, and what it was computed from."""
    outputs = net.outputs if hasattr(net, "outputs") else net
    said = outputs(*batch.views, batch.present)  # type: ignore[operator]
    return LOSSES[fitting.loss](said, batch, fitting), said
