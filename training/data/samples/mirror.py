"""Mirrors some samples of a batch left to right, by the one permutation of kernels.lumbar.labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from kernels.lumbar.inputs.mirroring import mirrored_points, mirrored_targets
from kernels.lumbar.inputs.views import mirror_pixels
from kernels.lumbar.labels import UNITS
from kernels.lumbar.specs import Member
from training.data.samples.batch import Batch


def mirrored_views(member: Member) -> list[int]:
    """For each view the index of the view that shows it in the mirrored study.

    Raises ValueError if a mirrored view or target is missing.
    """
    try:
        partners = [member.inputs.index(request.mirrored()) for request in member.inputs]
        mirrored_targets(member)
    except ValueError as error:
        raise ValueError(
            f"mirror needs each view and target of a side together with the other one's: {error}"
        ) from None
    if member.role == "localiser" and partners[0] != 0:
        raise ValueError("mirror needs a localiser whose first view shows both sides: its points lie in that view")
    return partners


def mirror_some(batch: Batch, member: Member, partners: Sequence[int], chosen: torch.Tensor) -> Batch:
    """The batch with the `chosen` (B,) samples mirrored left to right; `partners` as of `mirrored_views`."""
    unit, order = UNITS[member.unit][0], mirrored_targets(member)
    views = []
    for own, partner, request in zip(batch.views, partners, member.inputs, strict=True):
        sided = request.mirror_right and request.side(unit) is not None
        other = batch.views[partner] if sided else mirror_pixels(batch.views[partner], request.series)
        views.append(torch.where(chosen[:, None, None, None], other, own))
    present = torch.where(chosen[:, None], batch.present[:, list(partners)], batch.present)
    if member.role == "localiser":
        flipped = mirrored_points(member, batch.target, batch.views[0].shape[1:])
    else:
        flipped = batch.target[:, order]
    distance_mm = batch.distance_mm
    if distance_mm is not None:
        axial = member.inputs[0].series == "axial_t2"
        turned = distance_mm[..., order] if axial else -distance_mm[..., order].flip(1)
        distance_mm = torch.where(chosen[:, None, None], turned, distance_mm)
    chosen_target = chosen.view(-1, *(1,) * (batch.target.dim() - 1))
    target = torch.where(chosen_target, flipped, batch.target)
    return replace(batch, views=tuple(views), present=present, target=target, distance_mm=distance_mm)
