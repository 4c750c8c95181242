"""Inputs of the mirrored study, and its answers turned back: by the one left/right permutation of labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..labels import MIRROR, ROW_INDEX, ROWS, UNITS, row_of
from ..specs import Member
from .views import mirror_pixels, turn_pixels


def mirrored_tensors(
    member: Member, tensors: Sequence[torch.Tensor], present: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The inputs that the mirrored study would give: partner views exchanged, midline views flipped.

    Sided views that are presented as left ones (mirror_right) are exchanged as they are: flipping is in them already.
    """
    partners = [member.inputs.index(request.mirrored()) for request in member.inputs]
    unit = UNITS[member.unit][0]
    mirrored = []
    for request, partner in zip(member.inputs, partners, strict=True):
        tensor = tensors[partner]
        exchanged_only = request.mirror_right and request.side(unit) is not None
        mirrored.append(tensor if exchanged_only else mirror_pixels(tensor, request.series))
    return mirrored, present[:, partners]


def turned_tensors(member: Member, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The inputs with front and back of the patient exchanged, which no answer of a grader should depend on."""
    return [turn_pixels(tensor, request.series) for request, tensor in zip(member.inputs, tensors, strict=True)]


def mirrored_targets(member: Member) -> list[int]:
    """Position k of the answer to the mirrored study speaks of target mirrored_targets[k] of the study."""
    unit = UNITS[member.unit][0]
    rows = [row_of(target, unit) for target in member.targets]
    return [rows.index(ROWS[MIRROR[ROW_INDEX[row]]]) for row in rows]


def mirrored_points(member: Member, points: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(B, K, 3 or more) points of a localiser, slice, row and column first, as the mirrored study has them.

    `shape`: (slices, height, width) of the first view, in whose pixels they lie.
    """
    axis = 2 if member.inputs[0].series == "axial_t2" else 0
    mirrored = points[:, mirrored_targets(member)].clone()
    mirrored[..., axis] = shape[axis] - 1 - mirrored[..., axis]
    return mirrored
