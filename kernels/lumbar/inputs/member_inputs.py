"""From studies and their landmarks to the input tensors of one member, and to those of the mirrored studies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np
import torch

from ..dicom.study import Study
from ..labels import UNITS, Unit
from ..specs import Member, ViewRequest
from .normalise import normalise
from .views import View, cut

CPU = torch.device("cpu")


@dataclass(frozen=True)
class MemberInputs:
    """The inputs of one member for a batch of studies, one row a study and unit, whether anything is seen or not.

    Rows without a view are blank: a study's rows have the same place in the batch whatever the others lack, so that no
    answer depends on another study.
    """

    member: Member
    places: tuple[tuple[int, Unit], ...]
    """One a row: number of the study, and its unit."""
    views: tuple[tuple[View | None, ...], ...]
    """(row, request); None = missing"""
    tensors: tuple[torch.Tensor, ...]
    """One normalised (rows, slices, size_px, size_px) float32 tensor a request."""
    present: torch.Tensor
    """(rows, requests) of 0 and 1"""

    @property
    def seen(self) -> list[bool]:
        """For each row whether it has any view."""
        return [any(view is not None for view in row) for row in self.views]


@dataclass
class InputCache:
    """A batch of studies and the landmarks at which networks look.

    Each view is cut and normalised once for all members that ask for it.
    """

    studies: Sequence[Study]
    landmarks: Sequence[Mapping[str, np.ndarray]]
    """Row name → patient mm, one mapping a study."""
    device: torch.device = CPU
    helper: Executor | None = None
    """One thread that cuts what comes next while a network looks at what is there."""
    _coming: dict[str, Future[MemberInputs]] = field(default_factory=dict)
    _cut: dict[tuple[int, ViewRequest, tuple[str, ...], str], View | None] = field(default_factory=dict)
    _columns: dict[tuple[ViewRequest, str], _Column] = field(default_factory=dict)

    def prepare(self, member: Member) -> None:
        """Let the helper begin with a member's inputs; `feed` waits for them."""
        if self.helper is not None:
            self._coming[member.name] = self.helper.submit(self._feed, member)

    def feed(self, member: Member) -> MemberInputs:
        """All inputs of a member."""
        coming = self._coming.pop(member.name, None)
        return self._feed(member) if coming is None else coming.result()

    def _feed(self, member: Member) -> MemberInputs:
        units = UNITS[member.unit]
        columns = [self._column(request, member.unit) for request in member.inputs]
        return MemberInputs(
            member,
            tuple((number, unit) for number in range(len(self.studies)) for unit in units),
            tuple(zip(*(column.views for column in columns), strict=True)),
            tuple(column.tensor for column in columns),
            torch.stack([column.present for column in columns], 1),
        )

    def moved(self, landmarks: Sequence[Mapping[str, np.ndarray]]) -> InputCache:
        """The same studies seen at other landmarks; views of whole images are kept."""
        kept = {key: view for key, view in self._cut.items() if not key[2]}
        whole = {key: column for key, column in self._columns.items() if not column.at_landmarks}
        return InputCache(self.studies, landmarks, self.device, self.helper, {}, kept, whole)

    def let_go(self, still_asked: Collection[ViewRequest]) -> None:
        """Free the device of the tensors that none of these requests asks for; what was cut is kept."""
        for key in list(self._columns):  # a copy: the helper may be adding to them
            if key[0] not in still_asked:
                self._columns.pop(key, None)

    def of_one(self, number: int) -> InputCache:
        """One of the studies alone."""
        return InputCache([self.studies[number]], [self.landmarks[number]], self.device)

    def _column(self, request: ViewRequest, kind: str) -> _Column:
        key = request, kind
        if key not in self._columns:
            views = [self._view(number, request, unit) for number in range(len(self.studies)) for unit in UNITS[kind]]
            present = torch.tensor([float(view is not None) for view in views], device=self.device)
            blank = np.zeros((request.slices.count, request.size_px, request.size_px), np.uint8)
            pixels = np.stack([blank if view is None else view.pixels for view in views])
            normalised = normalise(torch.from_numpy(pixels).to(self.device), request.normalisation)
            at_landmarks = any(request.landmarks(unit) for unit in UNITS[kind])
            self._columns[key] = _Column(views, normalised * present[:, None, None, None], present, at_landmarks)
        return self._columns[key]

    def _view(self, number: int, request: ViewRequest, unit: Unit) -> View | None:
        place = request.place(unit)
        key = number, request.anywhere, request.landmarks(unit), f"{place.level} {place.side}"
        if key not in self._cut:
            self._cut[key] = cut(self.studies[number], request, unit, self.landmarks[number])
        return self._cut[key]


@dataclass(frozen=True)
class _Column:
    """One request at all units of a kind, in all studies."""

    views: list[View | None]
    tensor: torch.Tensor
    present: torch.Tensor
    at_landmarks: bool
