"""Augmentation of whole batches of graders: front-to-back, dihedral, mixup and cutmix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from kernels.lumbar.inputs.views import turn_pixels
from kernels.lumbar.labels import UNITS
from kernels.lumbar.specs import ViewRequest
from training.data.samples.batch import Batch, send
from training.recipe_schema.fitting import Augmentation

MOST_UNITS = max(map(len, UNITS.values()))


def turn_some(batch: Batch, inputs: Sequence[ViewRequest], chosen: torch.Tensor) -> Batch:
    """Exchange front and back in all views of the `chosen` (B,) samples."""
    views = [
        torch.where(chosen[:, None, None, None], turn_pixels(view, request.series), view)
        for view, request in zip(batch.views, inputs, strict=True)
    ]
    return replace(batch, views=tuple(views))


def dihedral_some(batch: Batch, probability: float, generator: torch.Generator) -> Batch:
    """A random element of the dihedral group of the square for some samples, the same for all slices and views."""
    count = len(batch.target)
    way = torch.randint(8, (count,), generator=generator) * (torch.rand(count, generator=generator) < probability)
    views = [view.clone() for view in batch.views]
    for number in range(1, 8):
        chosen = (way == number).nonzero()[:, 0]
        for view in views:
            turned = torch.rot90(view[send(chosen, view.device)], number % 4, (-2, -1))
            view[send(chosen, view.device)] = turned.flip(-1) if number >= 4 else turned
    return replace(batch, views=tuple(views))


def blended(
    batch: Batch, settings: Augmentation, epoch: int, generator: torch.Generator, whole_studies: bool = False
) -> Batch:
    """The batch blended with itself in another order, as a whole (mixup, Zhang et al. 2018) or in one box of all images
    (cutmix, Yun et al. 2019, 5th place: the same box for all crops and slices).

    `whole_studies`: the order is one of studies, and each level is blended with the same level of the other study.
    A sample stays as it is, with its own labels, where its partner lacks one of its views or has one more.
    """
    count = len(batch.target)
    mixup = settings.mixup if settings.mixup_epochs is None or epoch <= settings.mixup_epochs else 0.0
    drawn = torch.rand(2, generator=generator).tolist()
    if count < 2 or not (drawn[0] < settings.cutmix or drawn[1] < mixup):
        return batch
    order = _partners(batch, whole_studies, generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    share = float(np.random.default_rng(seed).beta(settings.blend_alpha, settings.blend_alpha))
    if drawn[0] < settings.cutmix:
        box = _box(batch.views[0].shape[-1], share, generator)
        share = 1 - float(box.float().mean())
        kept = [1 - send(box.to(view.dtype), view.device) for view in batch.views]
    else:
        kept = [view.new_full((1, 1), share) for view in batch.views]
    views = [view * own + view[order] * (1 - own) for view, own in zip(batch.views, kept, strict=True)]
    return replace(batch, views=tuple(views), other=batch.target[order], share=share)


def _partners(batch: Batch, whole_studies: bool, generator: torch.Generator) -> torch.Tensor:
    """(B,) index of the sample with which each one is blended; its own where that has other views."""
    count, device = len(batch.target), batch.target.device
    itself = torch.arange(count, device=device)
    if whole_studies:
        studies, units = batch.known_origin.studies, batch.known_origin.units
        assert units is not None  # of all batches of samples
        # A random order of the studies, on the device: there are at most as many as samples, and the rest comes last.
        drawn = send(torch.rand(count, generator=generator), device)
        order = torch.where(itself <= studies.max(), drawn, 2.0).argsort()
        place = itself.new_full((count * MOST_UNITS,), -1)
        place[studies * MOST_UNITS + units] = itself
        partner = place[order[studies] * MOST_UNITS + units]
        partner = torch.where(partner < 0, itself, partner)  # a study without this level
    else:
        partner = send(torch.randperm(count, generator=generator), device)
    alike = (batch.present == batch.present[partner]).all(1)
    return torch.where(alike, partner, itself)


def _box(size_px: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """(size_px, size_px) bool: a box of 1 - share of the area around a random middle, cut at the border."""
    half = size_px * math.sqrt(1 - share) / 2
    middle = torch.rand(2, generator=generator) * size_px
    place = torch.arange(size_px) + 0.5
    rows, columns = ((place - one).abs() < half for one in middle)
    return rows[:, None] & columns
