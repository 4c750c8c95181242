"""Input tensors of a member from a batch of studies and their landmarks; each view is cut once for all members."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import nullcontext
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
    """The inputs of one member for a batch of studies: one row per study and unit.

    Rows without a view are blank, so that the place of a study's rows, and so its answers, do not depend on what other
    studies lack.
    """

    member: Member
    places: tuple[tuple[int, Unit], ...]
    """One per row: index of the study, and the unit."""
    views: tuple[tuple[View | None, ...], ...]
    """(rows, requests); None = missing."""
    tensors: tuple[torch.Tensor, ...]
    """One normalised (rows, slices, size_px, size_px) float32 tensor per request."""
    present: torch.Tensor
    """(rows, requests) of 0 and 1."""
    ready: torch.cuda.Event | None = None
    """When a GPU's copies are complete; None on a CPU."""

    @property
    def seen(self) -> list[bool]:
        """(rows,) whether the row has any view."""
        return [any(view is not None for view in row) for row in self.views]


@dataclass
class InputCache:
    """Views of a batch of studies at given landmarks, cut and normalised once for all members that request them."""

    studies: Sequence[Study]
    landmarks: Sequence[Mapping[str, np.ndarray]]
    """Row name → patient mm, one mapping per study."""
    device: torch.device = CPU
    executor: Executor | None = None
    """One thread that cuts the next member's inputs while the current one runs; None = no prefetching."""
    _prefetched: dict[str, Future[MemberInputs]] = field(default_factory=dict)
    _views: dict[tuple[int, ViewRequest, tuple[str, ...], str], View | None] = field(default_factory=dict)
    _columns: dict[tuple[ViewRequest, str], _Column] = field(default_factory=dict)
    _stream: torch.cuda.Stream | None = None
    """Of a GPU: copies to it, beside the forwards on its usual stream.  None on a CPU."""

    def __post_init__(self) -> None:
        if self.device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(self.device)

    def prefetch(self, member: Member) -> None:
        """Start cutting a member's inputs in the executor; `inputs_of` waits for them."""
        if self.executor is not None:
            self._prefetched[member.name] = self.executor.submit(self._assemble, member)

    def inputs_of(self, member: Member) -> MemberInputs:
        """All inputs of a member."""
        future = self._prefetched.pop(member.name, None)
        inputs = self._assemble(member) if future is None else future.result()
        if inputs.ready is not None:
            hand_over(inputs, torch.cuda.current_stream(self.device))
        return inputs

    def _assemble(self, member: Member) -> MemberInputs:
        units = UNITS[member.unit]
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            columns = [self._column(request, member.unit) for request in member.inputs]
            present = torch.stack([column.present for column in columns], 1)
            ready = None if self._stream is None else self._stream.record_event()
        return MemberInputs(
            member,
            tuple((number, unit) for number in range(len(self.studies)) for unit in units),
            tuple(zip(*(column.views for column in columns), strict=True)),
            tuple(column.tensor for column in columns),
            present,
            ready,
        )

    def with_landmarks(self, landmarks: Sequence[Mapping[str, np.ndarray]]) -> InputCache:
        """The same studies with other landmarks; views of whole images are kept."""
        views = {key: view for key, view in self._views.items() if not key[2]}
        whole = {key: column for key, column in self._columns.items() if not column.at_landmarks}
        return InputCache(self.studies, landmarks, self.device, self.executor, {}, views, whole, self._stream)

    def free_except(self, requests: Collection[ViewRequest]) -> None:
        """Drop the tensors of all other requests from the device; their uint8 views stay cached."""
        for key in list(self._columns):  # a copy: the executor's thread may be adding to them
            if key[0] not in requests:
                self._columns.pop(key, None)

    def single(self, number: int) -> InputCache:
        """A cache of one of the studies alone."""
        return InputCache([self.studies[number]], [self.landmarks[number]], self.device)

    def _column(self, request: ViewRequest, kind: str) -> _Column:
        key = request, kind
        if key not in self._columns:
            views = [self._view(number, request, unit) for number in range(len(self.studies)) for unit in UNITS[kind]]
            present = torch.tensor([float(view is not None) for view in views], device=self.device)
            pixels = stacked(views, request, pinned=self.device.type == "cuda")
            normalised = normalise(pixels.to(self.device, non_blocking=True), request.normalisation)
            at_landmarks = any(request.landmarks(unit) for unit in UNITS[kind])
            self._columns[key] = _Column(views, normalised * present[:, None, None, None], present, at_landmarks)
        return self._columns[key]

    def _view(self, number: int, request: ViewRequest, unit: Unit) -> View | None:
        place = request.place(unit)
        key = number, request.anywhere, request.landmarks(unit), f"{place.level} {place.side}"
        if key not in self._views:
            self._views[key] = cut(self.studies[number], request, unit, self.landmarks[number])
        return self._views[key]


def stacked(views: Sequence[View | None], request: ViewRequest, pinned: bool) -> torch.Tensor:
    """(rows, S, H, W) uint8 pixels of the views of a request, blank where there is none.

    `pinned`: in page-locked memory, which a GPU copies from while the CPU goes on; torch keeps such memory until its
    copy is complete.
    """
    shape = len(views), request.slices.count, request.size_px, request.size_px
    pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned)
    for row, view in zip(pixels.numpy(), views, strict=True):
        if view is not None:
            row[...] = view.pixels
    return pixels


def hand_over(inputs: MemberInputs, stream: torch.cuda.Stream) -> None:
    """Let a stream use inputs that another one copied: it waits for them, and their memory waits for it."""
    assert inputs.ready is not None
    stream.wait_event(inputs.ready)
    for tensor in (*inputs.tensors, inputs.present):
        tensor.record_stream(stream)


@dataclass(frozen=True)
class _Column:
    """One request at all units of a kind, in all studies: one row each."""

    views: list[View | None]
    tensor: torch.Tensor  # (rows, S, H, W)
    present: torch.Tensor  # (rows,)
    at_landmarks: bool
