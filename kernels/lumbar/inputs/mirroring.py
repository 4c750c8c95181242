"""Inputs of the mirrored study and the inverse for its answers, by the one left/right permutation of labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..labels import MIRROR, ROW_INDEX, ROWS, UNITS, row_of
from ..specs import Member
from .views import mirror_pixels, turn_pixels


def mirrored_tensors(
    member: Member, tensors: Sequence[torch.Tensor], present: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Inputs of the mirrored study: partner views exchanged, midline views flipped.  Shapes stay as they are.

    Sided views that are presented as left ones (mirror_right) are exchanged without a flip: they are flipped already.
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
    """Inputs with front and back of the patient exchanged; a grader's answers should be invariant to that."""
    return [turn_pixels(tensor, request.series) for request, tensor in zip(member.inputs, tensors, strict=True)]


def mirrored_targets(member: Member) -> list[int]:
    """Permutation p: output k on the mirrored study is target p[k] of the study."""
    unit = UNITS[member.unit][0]
    rows = [row_of(target, unit) for target in member.targets]
    return [rows.index(ROWS[MIRROR[ROW_INDEX[row]]]) for row in rows]


def mirrored_points(member: Member, points: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(B, K, 3 or more) points (slice, row, column, …) of a localiser, mirrored; its own inverse.

    `shape`: (slices, height, width) of the first view, in whose pixels the points are.
    """
    axis = 2 if member.inputs[0].series == "axial_t2" else 0
    mirrored = points[:, mirrored_targets(member)].clone()
    mirrored[..., axis] = shape[axis] - 1 - mirrored[..., axis]
    return mirrored
