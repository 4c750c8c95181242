"""The samples of one network in one fold: cached crops → augmented and normalised batches.

Whole batches are copied from the memory map and augmented on the device, without workers or decoding by sample, so that
the GPU does not wait for data.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from kernels.lumbar.inputs.landmark_maps import draw_marks
from kernels.lumbar.inputs.mirroring import mirrored_targets
from kernels.lumbar.inputs.normalise import normalise
from kernels.lumbar.labels import UNITS, row_of
from kernels.lumbar.specs import ViewRequest
from training.data.cache.crop_cache import Cache
from training.data.samples.augment import (
    grey_changes,
    random_affine,
    sharpen_or_blur,
    shuffle_slices,
    warp,
    warp_points,
)
from training.data.samples.batch import Batch, Origin
from training.data.samples.blend import blended, dihedral_some, turn_some
from training.data.samples.cached_crops import Change, central, grid_of, mirror_some, slice_window, take, take_slices
from training.data.samples.sample_targets import groups_of, points, severities
from training.data.samples.staging import Staging, send
from training.data.tables import Tables
from training.recipe_schema.fitting import Augmentation
from training.recipe_schema.schema import MemberRecipe

log = logging.getLogger("samples")


class MemberSamples:
    """training.data.samples.batch.Samples of one network.

    localiser_error_mm: series kind → standard deviation (mm, each axis) of the fold's localisation error.
    A localiser's target slice is its index before slices are shuffled.
    Raises ValueError without usable training studies, or if mirroring lacks a mirrored view or target.
    """

    def __init__(
        self,
        cache: Cache,
        tables: Tables,
        recipe: MemberRecipe,
        train_studies: Sequence[str],
        validation_studies: Sequence[str],
        device: torch.device,
        seed: int,
        localiser_error_mm: Mapping[str, float],
    ) -> None:
        self.member, self.fitting = recipe.member, recipe.fitting
        self.device, self.seed = device, seed
        self.views = [cache.of(self.member.unit, request) for request in self.member.inputs]
        if any(request.marks for request in self.member.inputs):
            self.mark_error_mm = self._error_mm("sagittal_t2", localiser_error_mm)
        self.jitter_px = [self._jitter_px(request, localiser_error_mm) for request in self.member.inputs]
        self.partners = self._mirrored_views()
        if self.member.role == "grader":
            graded = self.views[0] if self.fitting.loss == "valid_slices_bce" else None
            self.targets = severities(cache, tables.labels, self.member, graded)
        else:
            self.targets = points(cache, self.member, self.views[0])
        self.groups = send(groups_of(self.member), device)
        self.marks = self._landmarks_to_draw(cache)
        place = {study: number for number, study in enumerate(cache.studies)}
        self.train_samples = self._usable([place[study] for study in train_studies])
        self.validation_samples = self._usable([place[study] for study in validation_studies])
        if not self.train_samples:
            raise ValueError("no training study has both a label and an image of this network's views")
        batch = self.fitting.optimisation.batch_size
        # The last, smaller batch is dropped: batch normalisation needs more than one sample.
        self.steps_per_epoch = max(len(self.train_samples) // batch, 1)
        if self.fitting.optimisation.whole_studies:
            batch *= len(UNITS[self.member.unit])
        self.staging = Staging([(batch, *view.pixels.shape[1:]) for view in self.views], device)

    def _mirrored_views(self) -> list[int] | None:
        """For each view the index of the view that shows it in the mirrored study; None without mirroring.

        Units of one side are not mirrored: mirror_right shows both sides as left ones.
        """
        if not self.fitting.augmentation.mirror or UNITS[self.member.unit][0].side is not None:
            return None
        try:
            partners = [self.member.inputs.index(request.mirrored()) for request in self.member.inputs]
            mirrored_targets(self.member)
        except ValueError as error:
            raise ValueError(
                f"mirror needs each view and target of a side together with the other one's: {error}"
            ) from None
        if self.member.role == "localiser" and partners[0] != 0:
            raise ValueError("mirror needs a localiser whose first view shows both sides: its points lie in that view")
        return partners

    def _jitter_px(self, request: ViewRequest, localiser_error_mm: Mapping[str, float]) -> float:
        if not request.centre or request.size_mm is None:
            return 0.0
        return self._error_mm(request.series, localiser_error_mm) * request.size_px / request.size_mm

    def _error_mm(self, series: str, localiser_error_mm: Mapping[str, float]) -> float:
        """Standard deviation (mm, each axis) of the landmark jitter of a series in training."""
        jitter_mm = self.fitting.augmentation.jitter_mm
        if jitter_mm == "localiser":
            if series not in localiser_error_mm:
                log.warning("%s: no localisation error is known for %s", self.member.name, series)
            return localiser_error_mm.get(series, 0.0)
        return jitter_mm

    def _usable(self, studies: Sequence[int]) -> list[np.ndarray]:
        """Indices of samples: each unit with a label and an image, or all such units of each study together."""
        units = len(UNITS[self.member.unit])
        usable = np.logical_or.reduce([view.present for view in self.views]) & self.targets.labelled
        of_study = [np.flatnonzero(usable[study * units : (study + 1) * units]) + study * units for study in studies]
        if self.fitting.optimisation.whole_studies:
            return [indices for indices in of_study if len(indices)]
        return [indices[at : at + 1] for indices in of_study for at in range(len(indices))]

    def training(self, epoch: int) -> Iterator[Batch]:
        """Shuffled, augmented batches, determined by the epoch number."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        samples = self.train_samples
        order = torch.randperm(len(samples), generator=generator).tolist()
        size = self.fitting.optimisation.batch_size
        for step in range(self.steps_per_epoch):
            indices = np.concatenate([samples[number] for number in order[step * size : (step + 1) * size]])
            batch = self._batch(indices, generator)
            if self.member.role == "grader":
                batch = blended(batch, self.fitting.augmentation, epoch, generator)
            yield batch

    def validation(self) -> Iterator[Batch]:
        """All samples of the held-out studies, in order, cut as by the kernel at the true landmarks."""
        samples, size = self.validation_samples, self.fitting.optimisation.batch_size
        for start in range(0, len(samples), size):
            yield self._batch(np.concatenate(samples[start : start + size]), None)

    def read(self, indices: np.ndarray) -> list[torch.Tensor]:
        """The cached views (B, slice, H, W) uint8 of some samples, in reused staging memory."""
        parts = self.staging.take(len(indices))
        return [take(view, indices, out) for view, out in zip(self.views, parts, strict=True)]

    def _batch(self, indices: np.ndarray, generator: torch.Generator | None) -> Batch:
        present = torch.from_numpy(np.stack([view.present[indices] for view in self.views], 1)).float()
        pixels = self.read(indices)
        for number, marks in self.marks.items():
            pixels[number], known = self._drawn(number, marks[indices], indices, generator)
            present[:, number] *= known
        whole = Batch(
            tuple(send(view, self.device) for view in pixels),
            send(present, self.device),
            send(torch.from_numpy(self.targets.values[indices]), self.device),
            None
            if self.targets.distance_mm is None
            else send(torch.from_numpy(self.targets.distance_mm[indices]), self.device),
            self._origin(indices),
        )
        self.staging.sent()
        if generator is not None and self.partners is not None:
            chosen = torch.rand(len(indices), generator=generator) < self.fitting.augmentation.mirror
            whole = mirror_some(whole, self.member, self.partners, send(chosen, self.device))
        if generator is not None and (share := self.fitting.augmentation.front_to_back):
            chosen = torch.rand(len(indices), generator=generator) < share
            whole = turn_some(whole, self.member.inputs, send(chosen, self.device))
        views, target, distance_mm = [], whole.target, whole.distance_mm
        changes: dict[ViewRequest, Change] = {}
        for number, request in enumerate(self.member.inputs):
            if generator is None:
                grey, moved, first = central(whole.views[number], whole.target, request)
            else:
                grid = grid_of(request)
                change = changes[grid] = changes.get(grid) or self._change(number, len(indices), generator)
                grey, moved, first = self._augmented(number, change, whole, generator)
            if number == 0:
                target, distance_mm = moved, take_slices(whole.distance_mm, first, request.slices.count)
            views.append(normalise(grey, request.normalisation) * whole.present[:, number, None, None, None])
        batch = replace(whole, views=tuple(views), target=target, distance_mm=distance_mm)
        if generator is not None and (share := self.fitting.augmentation.dihedral):
            batch = dihedral_some(batch, share, generator)
        return batch

    def _origin(self, indices: np.ndarray) -> Origin | None:
        if self.member.role != "grader":
            return None
        studies = np.unique(indices // len(UNITS[self.member.unit]), return_inverse=True)[1]
        return Origin(send(torch.from_numpy(studies), self.device), self.groups)

    def _change(self, number: int, count: int, generator: torch.Generator) -> Change:
        """Affine change of the samples of one view, shared by views of the same pixel grid."""
        matrix = random_affine(self.fitting.augmentation, count, generator)
        return Change(matrix, torch.randn(count, 2, generator=generator) * self.jitter_px[number])

    def _augmented(
        self, number: int, change: Change, whole: Batch, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One augmented view (B, S, H, W), its points if it has any, and (B, 1) its first slice."""
        request, settings, points = self.member.inputs[number], self.fitting.augmentation, whole.target
        window, first = slice_window(whole.views[number], request.slices.count, settings.slice_jitter, generator)
        grey = window.float()
        matrix, shift_px = change
        from_px = grey.shape[-1]
        if not _is_identity(settings) or self.jitter_px[number] or from_px != request.size_px:
            grey = warp(grey, matrix, shift_px, request.size_px)
        if points.dim() == 3:
            points = warp_points(
                points, send(matrix, points.device), send(shift_px, points.device), from_px, request.size_px
            )
            points[..., 0] -= send(first, points.device)
        if not request.marks:
            grey = sharpen_or_blur(grey, settings.sharpen_or_blur, generator)
            grey = grey_changes(grey, settings, generator)
            if request.slices.fit == "pad":  # blank slices stay zero
                grey = grey * (window.amax((2, 3), keepdim=True) > 0)
        if settings.slice_shuffle and request.series in settings.slice_shuffle_series:
            grey = shuffle_slices(grey, settings.slice_shuffle, generator)
        return grey, points, first

    def _landmarks_to_draw(self, cache: Cache) -> dict[int, np.ndarray]:
        """View → (N, M, 3) mm of the landmarks that it draws in place of an image; NaN = unknown."""
        units, marks = UNITS[self.member.unit], {}
        for number, request in enumerate(self.member.inputs):
            if request.marks:
                nowhere = np.full(3, np.nan)
                marks[number] = np.array(
                    [
                        [cache.landmarks.get(study, {}).get(row_of(name, unit), nowhere) for name in request.marks]
                        for study in cache.studies
                        for unit in units
                    ]
                )
        return marks

    def _drawn(
        self, number: int, marks: np.ndarray, indices: np.ndarray, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, slice, H, W) uint8 landmark maps, jittered in training, and (B,) whether any landmark is known."""
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator))
            marks = marks + np.random.default_rng(seed).normal(0, self.mark_error_mm, marks.shape)
        view = self.views[number]
        shape = view.pixels.shape[1:]
        drawn = [draw_marks(view.planes(index), list(one), shape) for index, one in zip(indices, marks, strict=True)]
        return torch.from_numpy(np.stack(drawn)), torch.from_numpy(np.isfinite(marks).all(2).any(1))


def _is_identity(settings: Augmentation) -> bool:
    return not (settings.rotate_deg or settings.shear_deg or settings.scale)
