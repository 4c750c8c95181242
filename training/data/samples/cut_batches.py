"""Cuts the samples of a batch from the stacks of their studies, as the kernel cuts them, with random changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from kernels.lumbar.inputs.views import View, cut
from kernels.lumbar.labels import UNITS, group_of
from kernels.lumbar.specs import Member, ViewRequest
from training.data.cache.stack_cache import StackCache
from training.data.samples.changed_crops import Change, random_affine
from training.data.samples.sample_targets import in_view
from training.recipe_schema.fitting import Augmentation

# Views whose places stay in memory from epoch to epoch, some 100 MB of them.
MOST_PLACED = 1 << 16


@dataclass(frozen=True)
class Cut:
    """B samples before any other augmentation, in the CPU's memory."""

    views: tuple[torch.Tensor, ...]
    """One (B, slices, size_px, size_px) uint8 tensor a view; zeros where the view is missing."""
    present: torch.Tensor
    """(B, views) float32 of 0 and 1."""
    points: torch.Tensor
    """(B, K, 3) float32 targets as landmarks in the first view: slice, row, column; NaN where unknown or outside."""
    distance_mm: torch.Tensor
    """(B, S, K) float32, as in training.data.samples.batch.Batch."""
    pixel_mm: torch.Tensor
    """(B,) float32, as there; NaN where the first view is missing."""


def chosen_by(request: ViewRequest) -> str:
    """The condition group whose landmarks choose the slices of a crop or of whole images; empty where none do."""
    if request.slices.by != "landmark":
        return ""
    return group_of((request.slices.near or request.centre)[0])


@dataclass(frozen=True)
class Changes:
    """The random changes of a batch, drawn beforehand, so that they do not depend on the threads that cut."""

    of_grids: Mapping[int, Sequence[Change]]
    """Number of a pixel grid → a change a sample; empty = none."""
    mark_errors_mm: Mapping[int, np.ndarray]
    """View → (B, marks, 3) error of the landmarks that it draws."""


class Cutter:
    """Cuts samples of N = studies × units, studies first, of one network.

    `jitter_mm`: series kind → standard deviation (each axis) of the centres of crops and of drawn landmarks, which are
    those of sagittal T2.  `with_points`: whether targets are landmarks in the first view, or a loss needs their
    distances.  `pinned`: whether batches are in page-locked memory, for a GPU.  `offsets_mm`: condition group → (N, 3)
    measured errors of its landmarks, of left sides or the midline, for slice_jitter `localiser`.
    """

    knows_spacing = True

    def __init__(
        self,
        cache: StackCache,
        member: Member,
        augmentation: Augmentation,
        jitter_mm: Mapping[str, float],
        with_points: bool,
        pinned: bool,
        offsets_mm: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.cache, self.member, self.units = cache, member, UNITS[member.unit]
        self._augmentation, self._jitter_mm = augmentation, jitter_mm
        self._with_points, self._pinned, self._offsets_mm = with_points, pinned, offsets_mm or {}
        self._is_right = [[request.side(unit) == "right" for request in member.inputs] for unit in self.units]
        self._placed: dict[int, list[View | None]] = {}
        # Views whose pixels show the same places are changed alike.
        places = [request.model_copy(update={"marks": (), "normalisation": "unit"}) for request in member.inputs]
        self._grids = [places.index(place) for place in places]

    def placed(self, index: int) -> list[View | None]:
        """`place`, which is done once for the first MOST_PLACED views, as annotations stay where they are; copies of
        these compute, so that their results do not stay in memory."""
        views = self._placed.get(index)
        if views is None:
            views = self.place(index)
            if (len(self._placed) + 1) * len(views) <= MOST_PLACED:
                self._placed[index] = views
        return views

    def place(self, index: int) -> list[View | None]:
        """The views of a sample as the kernel cuts them; their pixels are not sampled yet."""
        study, unit = self.cache.decoded[index // len(self.units)], self.units[index % len(self.units)]
        landmarks = self._landmarks(index)
        return [cut(study, request, unit, landmarks) for request in self.member.inputs]

    def points(self, index: int, view: View | None) -> tuple[np.ndarray, np.ndarray]:
        """A sample's targets in its first view, and their distances from its slices (`in_view`)."""
        return in_view(view, self.member, self.units[index % len(self.units)], self._landmarks(index))

    def draw(self, count: int, generator: torch.Generator) -> Changes:
        """Random changes of a batch, in the order of the views."""
        of_grids: dict[int, Sequence[Change]] = {}
        errors = {}
        for number, (grid, request) in enumerate(zip(self._grids, self.member.inputs, strict=True)):
            if grid == number:
                of_grids[grid] = self._changes(request, count, generator)
            if request.marks:
                seed = int(torch.randint(2**62, (), generator=generator))
                shape = count, len(request.marks), 3
                errors[number] = np.random.default_rng(seed).normal(0, self._jitter_mm["sagittal_t2"], shape)
        return Changes(of_grids, errors)

    def _changes(self, request: ViewRequest, count: int, generator: torch.Generator) -> Sequence[Change]:
        """A change a sample of one view; none where the recipe has none: the kernel's own sampling is used."""
        settings = self._augmentation
        is_crop = bool(request.centre) and request.size_mm is not None
        jitter_mm = self._jitter_mm[request.series] if is_crop else 0.0
        reach = settings.slice_jitter if is_crop and settings.slice_jitter != "localiser" else 0
        measured_mm = self._offsets_mm.get(chosen_by(request)) if settings.slice_jitter == "localiser" else None
        matrices = random_affine(settings, count, generator).double().numpy()
        shifts_mm = (torch.randn(count, 2, generator=generator) * jitter_mm).double().numpy()
        slices = torch.randint(-reach, reach + 1, (count,), generator=generator).tolist()
        in_plane = settings.rotate_deg or settings.shear_deg or settings.scale or jitter_mm
        if not (in_plane or reach or measured_mm is not None):
            return ()
        offsets_mm: Sequence[np.ndarray | None] = [None] * count
        if measured_mm is not None:
            offsets_mm = [*measured_mm[torch.randint(len(measured_mm), (count,), generator=generator).numpy()]]
        return [Change(*one) for one in zip(matrices, shifts_mm, slices, offsets_mm, strict=True)]

    def cut(self, indices: Sequence[int] | np.ndarray, changes: Changes | None) -> Cut:
        """The samples `indices`, changed or as the kernel sees them."""
        count, inputs, targets = len(indices), self.member.inputs, len(self.member.targets)
        shapes = [(count, request.slices.count, request.size_px, request.size_px) for request in inputs]
        views = [torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned) for shape in shapes]
        pixels = [view.numpy() for view in views]
        present = np.zeros((count, len(inputs)), np.float32)
        points = np.full((count, targets, 3), np.nan, np.float32)
        distance_mm = np.full((count, inputs[0].slices.count, targets), np.nan, np.float32)
        pixel_mm = np.full(count, np.nan, np.float32)
        for row, index in enumerate(map(int, indices)):
            for number, view in enumerate(self.placed(index)):
                if view is None:
                    pixels[number][row] = 0
                    continue
                right = self._is_right[index % len(self.units)][number]
                changed = replace(view) if changes is None else self._changed(view, number, row, changes, right)
                changed.sample(pixels[number][row])
                present[row, number] = 1
                if number == 0 and self._with_points:
                    pixel_mm[row] = changed.parts[0].size_mm / inputs[0].size_px
                    points[row], distance_mm[row] = self.points(index, changed)
        return Cut(tuple(views), *map(torch.from_numpy, (present, points, distance_mm, pixel_mm)))

    def _changed(self, view: View, number: int, row: int, changes: Changes, right: bool) -> View:
        of_samples = changes.of_grids[self._grids[number]]
        changed = of_samples[row].of(view, right) if of_samples else replace(view)
        if number not in changes.mark_errors_mm:
            return changed
        errors = changes.mark_errors_mm[number][row]
        marks = tuple(None if at is None else at + off for at, off in zip(view.marks, errors, strict=True))
        return replace(changed, marks=marks)

    def _landmarks(self, index: int) -> Mapping[str, np.ndarray]:
        return self.cache.landmarks.get(self.cache.studies[index // len(self.units)], {})
