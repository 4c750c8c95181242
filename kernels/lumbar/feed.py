"""From a study and its landmarks to the input tensors of one member, and to those of the mirrored study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .intensity import normalise
from .labels import MIRROR, ROW_INDEX, ROWS, UNITS, Unit, row_of
from .specs import Member, ViewRequest
from .study import Study
from .views import View, cut, mirror_pixels, turn_pixels

ViewKey = tuple[ViewRequest, tuple[str, ...], str | None]


@dataclass(frozen=True)
class Feed:
    """The inputs of one member for one study: B units, each with one view a request (None = missing)."""

    member: Member
    units: tuple[Unit, ...]
    views: tuple[tuple[View | None, ...], ...]
    """(unit, request)"""

    def tensors(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """One normalised (B, slices, size_px, size_px) float32 tensor a request, and `present` (B, requests)."""
        present = torch.tensor([[float(view is not None) for view in row] for row in self.views])
        tensors = []
        for column, request in enumerate(self.member.inputs):
            blank = np.zeros((request.slices.count, request.size_px, request.size_px), np.uint8)
            views = (row[column] for row in self.views)
            pixels = np.stack([blank if view is None else view.pixels for view in views])
            normalised = normalise(torch.from_numpy(pixels), request.normalisation)
            tensors.append(normalised * present[:, column, None, None, None])
        return tensors, present


def gather(
    study: Study,
    member: Member,
    landmarks: Mapping[str, np.ndarray],
    views: dict[ViewKey, View | None] | None = None,
) -> Feed | None:
    """Cut all views of a member; None where no unit has any view.

    `views` keeps what was cut: members that ask for the same view of the same landmarks share it.
    """
    kept: dict[ViewKey, View | None] = {} if views is None else views
    units, rows = [], []
    for unit in UNITS[member.unit]:
        row = []
        for request in member.inputs:
            place = request.place(unit)
            key = (request.anywhere, request.landmarks(unit), f"{place.level} {place.side}")
            if key not in kept:
                kept[key] = cut(study, request, unit, landmarks)
            row.append(kept[key])
        if any(view is not None for view in row):
            units.append(unit)
            rows.append(tuple(row))
    return Feed(member, tuple(units), tuple(rows)) if units else None


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
