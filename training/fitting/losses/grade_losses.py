"""Losses of graders; blended batches are scored against both of their targets.

Targets are severities (B, K), or the masses (B, K, 3) of soft labels (training/data/soft_labels.py): of a mass that is
one label's the losses are those of the label.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from kernels.lumbar.labels import GROUPS, SEVERITIES, SEVERITY_WEIGHTS
from training.data.samples.batch import Batch
from training.data.tables import MISSING
from training.fitting.losses.registry import LossSum, loss
from training.recipe_schema.fitting import Fitting

SEVERE = len(SEVERITIES) - 1
# Clip of the any-severe probabilities: half floats cannot come closer to 1.
SUREST = 1e-4


def weighted_cross_entropy(logits: Tensor, severities: Tensor) -> LossSum:
    """Cross entropy of logits (B, K, 3) with the metric's weights 1, 2, 4; severities (B, K); -100 is ignored.

    Of masses (B, K, 3): the expected one.
    """
    loss, weight = _cross_entropies(logits, severities)
    return LossSum((loss * weight).sum(), weight.sum())


def cross_entropy(logits: Tensor, severities: Tensor, groups: Tensor) -> LossSum:
    """Mean over the condition groups (K,) of the unweighted cross entropy: the 5th place's first step."""
    loss, weight = _cross_entropies(logits, severities if severities.dim() == 2 else _posterior(severities))
    return _mean_of(_by_group(loss, (weight > 0).to(loss), groups), len(logits))


def competition(logits: Tensor, severities: Tensor, groups: Tensor, studies: Tensor) -> LossSum:
    """The metric on a batch: mean of the groups' weighted losses and of the any-severe loss of whole studies.

    `groups` (K,) of the targets, `studies` (B,) of the samples, counted from 0.  Source: the organisers' metric; as a
    loss of the 7th and the 5th place.
    """
    loss, weight = _cross_entropies(logits, severities)
    parts = _by_group(loss * weight, weight, groups)
    canal = groups == GROUPS.index("spinal")
    if canal.any():
        labelled, of_severe = _severe_truth(severities[:, canal])
        severe = logits.float().softmax(2)[..., SEVERE][:, canal] * labelled
        truth = of_severe.to(severe)
        peak, peak_truth, peak_weight = (_peak(one, studies) for one in (severe, truth, weight[:, canal]))
        binary = functional.binary_cross_entropy(peak.clamp(SUREST, 1 - SUREST), peak_truth, reduction="none")
        parts = torch.cat([parts, torch.stack([(binary * peak_weight).sum(), peak_weight.sum()])[None]])
    return _mean_of(parts, len(logits))


def weighted_bce(logits: Tensor, severities: Tensor) -> LossSum:
    """Binary cross entropy of each class of logits (B, K, 3), with the metric's weights: 2nd place."""
    weight = _weights(severities)
    if severities.dim() == 2:
        onehot = functional.one_hot(severities.clamp_min(0), len(SEVERITIES)).to(torch.float32)
    else:
        onehot = _posterior(severities)
    loss = functional.binary_cross_entropy_with_logits(logits.float(), onehot, reduction="none").mean(2)
    return LossSum((loss * weight).sum(), weight.sum())


def valid_slices_bce(outputs: Tensor, severities: Tensor, distance_mm: Tensor, *, valid_mm: float = 8.0) -> LossSum:
    """weighted_bce of slices (B, S, K, 3 + 1) within valid_mm of the target, plus BCE of a slice being one of them.

    distance_mm (B, S, K); NaN = not annotated, and ignored.  Source: the 2nd place's all-slices graders.
    """
    labelled, _ = _severe_truth(severities)
    known = distance_mm.isfinite() & labelled[:, None]
    valid = (distance_mm.nan_to_num(valid_mm).abs() < valid_mm) & known
    if severities.dim() == 3:
        of_slice = (severities[:, None] * valid[..., None]).flatten(0, 1)
    else:
        of_slice = torch.where(valid, severities[:, None], MISSING).flatten(0, 1)
    grade = weighted_bce(outputs[..., : SEVERE + 1].flatten(0, 1), of_slice)
    shows = functional.binary_cross_entropy_with_logits(outputs[..., -1].float(), valid.float(), reduction="none")
    validity = LossSum((shows * known).sum(), known.sum().to(shows))
    count = len(outputs)
    return LossSum((grade.mean + validity.mean) * count, torch.full_like(grade.total, count))


def _cross_entropies(logits: Tensor, severities: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K) losses, and the metric's weights of the labels: 0 where there is none."""
    if severities.dim() == 3:
        weight = _weights(severities)
        loss = -(severities * logits.float().log_softmax(2)).sum(2) / weight.clamp_min(1e-12)
        return loss, weight
    loss = functional.cross_entropy(
        logits.float().flatten(0, 1), severities.flatten(), ignore_index=MISSING, reduction="none"
    )
    return loss.reshape(severities.shape), _weights(severities)


def _weights(severities: Tensor) -> Tensor:
    if severities.dim() == 3:
        return severities.sum(2)
    of_class = torch.tensor(SEVERITY_WEIGHTS, device=severities.device)
    return of_class[severities.clamp_min(0)] * (severities != MISSING)


def _posterior(masses: Tensor) -> Tensor:
    """Masses (B, K, 3) → probabilities of the severities, without the metric's weights; 0 where nothing is known."""
    plain = masses / masses.new_tensor(SEVERITY_WEIGHTS)
    return plain / plain.sum(2, keepdim=True).clamp_min(1e-12)


def _severe_truth(severities: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K) whether a row has a target, and whether it is severe, or how probably."""
    if severities.dim() == 3:
        return severities.sum(2) > 0, _posterior(severities)[..., SEVERE]
    labelled = severities != MISSING
    return labelled, (severities == SEVERE) & labelled


def _by_group(loss: Tensor, weight: Tensor, groups: Tensor) -> Tensor:
    """(groups, 2) sums of loss and of weight."""
    member = functional.one_hot(groups, len(GROUPS)).to(loss)
    return torch.stack([(loss @ member).sum(0), (weight @ member).sum(0)], 1)


def _mean_of(parts: Tensor, count: int) -> LossSum:
    """The mean of the parts that have any weight, as a sum over `count` samples."""
    total, weight = parts.unbind(1)
    used = (weight > 0).to(total)
    mean = (total / weight.clamp_min(1e-12) * used).sum() / used.sum().clamp_min(1)
    return LossSum(mean * count, used.sum().clamp_max(1) * count)


def _peak(values: Tensor, studies: Tensor) -> Tensor:
    """(studies,) the largest of (B, K) values of each study; they are not negative."""
    highest = values.amax(1)
    return highest.new_zeros(int(studies.max()) + 1).scatter_reduce(0, studies, highest, "amax")


def _by_slice(logits: Tensor, severities: Tensor) -> tuple[Tensor, Tensor]:
    """Logits by slice (B, S, K, 3) as B·S samples, each with the label of its crop; (B, K, 3) as they are."""
    if logits.dim() == 3:
        return logits, severities
    return logits.flatten(0, 1), severities.repeat_interleave(logits.shape[1], 0)


def _register(
    name: str, function: Callable[..., LossSum], on_batch: Callable[[Tensor, Tensor, Batch, Fitting], LossSum]
) -> None:
    """Register a loss of graders: `on_batch` from outputs, severities (B, K), batch and recipe.

    Blended batches (mixup, cutmix) take their share of the loss against the other samples' targets.
    """

    @loss(name, function, any_grader=name != "valid_slices_bce")
    def compute(outputs: Tensor, batch: Batch, fitting: Fitting) -> LossSum:
        own = on_batch(outputs, batch.target, batch, fitting)
        if batch.other is None:
            return own
        others, share = on_batch(outputs, batch.other, batch, fitting), batch.share
        return LossSum(share * own.total + (1 - share) * others.total, share * own.weight + (1 - share) * others.weight)


_register(
    "cross_entropy",
    cross_entropy,
    lambda outputs, target, batch, _: cross_entropy(*_by_slice(outputs, target), batch.known_origin.groups),
)
_register(
    "weighted_cross_entropy",
    weighted_cross_entropy,
    lambda outputs, target, *_: weighted_cross_entropy(*_by_slice(outputs, target)),
)
_register("weighted_bce", weighted_bce, lambda outputs, target, *_: weighted_bce(*_by_slice(outputs, target)))
_register(
    "competition",
    competition,
    lambda outputs, target, batch, _: competition(
        outputs, target, batch.known_origin.groups, batch.known_origin.studies
    ),
)
_register(
    "valid_slices_bce",
    valid_slices_bce,
    lambda outputs, target, batch, fitting: valid_slices_bce(
        outputs, target, batch.known_distances, **fitting.loss_options
    ),
)
