"""The samples of one network in one fold: cached crops in, augmented and normalised batches out.

Whole batches are taken from the memory map at once and augmented on the device; there are no workers and no per-sample
decoding, so the loader is never what a GPU waits for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from kernels.lumbar.feed import mirrored_targets
from kernels.lumbar.geometry import project_points
from kernels.lumbar.intensity import normalise
from kernels.lumbar.labels import UNITS, row_of
from kernels.lumbar.specs import ViewRequest
from kernels.lumbar.views import mirror_pixels
from training.data.augment import grey_changes, random_affine, sharpen_or_blur, shuffle_slices, warp, warp_points
from training.data.batch import Batch
from training.data.cache import MARGIN_SLICES, Cache, CachedView
from training.data.tables import MISSING, Tables
from training.recipe import Augmentation, MemberRecipe


class MemberSamples:
    """training.data.batch.Samples of one member: implements training(epoch), validation() and steps_per_epoch.

    localiser_error_mm: series kind → standard deviation, each axis, of what the fold's localiser misses by.
    Raises ValueError where nothing is left to train on.
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
        self.jitter_px = [self._jitter_px(request, localiser_error_mm) for request in self.member.inputs]
        self._set_targets(cache, tables.labels)
        place = {study: number for number, study in enumerate(cache.studies)}
        self.train_indices = self._usable([place[study] for study in train_studies])
        self.validation_indices = self._usable([place[study] for study in validation_studies])
        if not len(self.train_indices):
            raise ValueError("no training study has both a label and an image of what this network looks at")
        batch = self.fitting.optimisation.batch_size
        # The last, smaller batch is left out: one sample alone has no statistics to normalise by.
        self.steps_per_epoch = max(len(self.train_indices) // batch, 1)

    def _jitter_px(self, request: ViewRequest, localiser_error_mm: Mapping[str, float]) -> float:
        if not request.centre or request.size_mm is None:
            return 0.0
        jitter_mm = self.fitting.augmentation.jitter_mm
        if jitter_mm == "localiser":
            jitter_mm = localiser_error_mm.get(request.series, 0.0)
        return jitter_mm * request.size_px / request.size_mm

    def _set_targets(self, cache: Cache, labels: pd.DataFrame) -> None:
        """targets: (N, K) severities or (N, K, 3) points, and which samples have any."""
        units = UNITS[self.member.unit]
        rows = [[row_of(target, unit) for target in self.member.targets] for unit in units]
        if self.member.role == "grader":
            chosen = np.stack([labels.loc[list(cache.studies), names].to_numpy() for names in rows], 1)
            self.targets = chosen.reshape(-1, len(self.member.targets)).astype(np.int64)
            self.labelled = (self.targets != MISSING).any(1)
            return
        self.targets = np.full((len(cache.studies) * len(units), len(self.member.targets), 3), np.nan, np.float32)
        size = self.member.inputs[0].size_px
        for index in np.flatnonzero(self.views[0].present).tolist():
            study, names = cache.studies[index // len(units)], rows[index % len(units)]
            points = cache.landmarks.get(study, {})
            known = [place for place, name in enumerate(names) if name in points]
            if known:
                planes = self.views[0].planes(index)
                pixels = project_points(planes, np.stack([points[names[place]] for place in known]))
                inside = ((pixels[:, 1:] > -0.5) & (pixels[:, 1:] < size - 0.5)).all(1)
                self.targets[index, known] = np.where(inside[:, None], pixels, np.nan)
        self.labelled = np.isfinite(self.targets).any((1, 2))

    def _usable(self, studies: Sequence[int]) -> np.ndarray:
        units = len(UNITS[self.member.unit])
        indices = np.array([study * units + unit for study in studies for unit in range(units)], int)
        seen = np.stack([view.present for view in self.views]).any(0)
        return indices[seen[indices] & self.labelled[indices]] if len(indices) else indices

    def training(self, epoch: int) -> Iterator[Batch]:
        """Shuffled, augmented batches; the same epoch number always gives the same batches."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = self.train_indices[torch.randperm(len(self.train_indices), generator=generator).numpy()]
        size = self.fitting.optimisation.batch_size
        for step in range(self.steps_per_epoch):
            yield self._batch(order[step * size : (step + 1) * size], generator)

    def validation(self) -> Iterator[Batch]:
        """All samples of the held-out studies, in order, as the kernel would cut them at the true landmarks."""
        size = self.fitting.optimisation.batch_size
        for start in range(0, len(self.validation_indices), size):
            yield self._batch(self.validation_indices[start : start + size], None)

    def _batch(self, indices: np.ndarray, generator: torch.Generator | None) -> Batch:
        pixels = [take(view, indices).to(self.device) for view in self.views]
        present = torch.from_numpy(np.stack([view.present[indices] for view in self.views], 1)).float().to(self.device)
        target = torch.from_numpy(self.targets[indices]).to(self.device)
        augmentation = self.fitting.augmentation
        if generator is not None and augmentation.mirror:
            pixels, present, target = self._mirror(pixels, present, target, generator)
        views = []
        for number, request in enumerate(self.member.inputs):
            if generator is None:
                grey = central(pixels[number], request).float()
            else:
                grey, target = self._augmented(number, pixels[number], target, generator)
            there = present[:, number, None, None, None]
            views.append(normalise(grey, request.normalisation) * there)
        return Batch(tuple(views), present, target)

    def _augmented(
        self, number: int, pixels: torch.Tensor, target: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One view with all its random changes; a localiser's points move with its first view."""
        request, settings = self.member.inputs[number], self.fitting.augmentation
        grey = slice_window(pixels, request, settings, generator).float()
        matrix = random_affine(settings, len(grey), generator)
        shift_px = torch.randn(len(grey), 2, generator=generator) * self.jitter_px[number]
        from_px = grey.shape[-1]
        if not _is_identity(settings) or self.jitter_px[number] or from_px != request.size_px:
            grey = warp(grey, matrix, shift_px, request.size_px)
        if self.member.role == "localiser" and number == 0:
            target = warp_points(target, matrix.to(self.device), shift_px.to(self.device), from_px, request.size_px)
        grey = sharpen_or_blur(grey, settings.sharpen_or_blur, generator)
        grey = grey_changes(grey, settings, generator)
        if settings.slice_shuffle and request.series in settings.slice_shuffle_series:
            grey = shuffle_slices(grey, settings.slice_shuffle, generator)
        return grey, target

    def _mirror(
        self, pixels: list[torch.Tensor], present: torch.Tensor, target: torch.Tensor, generator: torch.Generator
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Show some samples mirrored.  Sided units are left alone: mirror_right shows both sides as left ones."""
        unit = UNITS[self.member.unit][0]
        if unit.side is not None:
            return pixels, present, target
        chosen = (torch.rand(len(target), generator=generator) < self.fitting.augmentation.mirror).to(self.device)
        partners = [self.member.inputs.index(request.mirrored()) for request in self.member.inputs]
        exchanged = []
        for own, partner, request in zip(pixels, partners, self.member.inputs, strict=True):
            sided = request.mirror_right and request.side(unit) is not None
            other = pixels[partner] if sided else mirror_pixels(pixels[partner], request.series)
            exchanged.append(torch.where(chosen[:, None, None, None], other, own))
        order = mirrored_targets(self.member)
        flipped = target[:, order].clone()
        if self.member.role == "localiser":
            first = self.member.inputs[0]
            axis = 2 if first.series == "axial_t2" else 0
            last = pixels[0].shape[-1] - 1 if axis == 2 else pixels[0].shape[1] - 1
            flipped[..., axis] = last - flipped[..., axis]
        chosen_target = chosen.view(-1, *(1,) * (target.dim() - 1))
        return (
            exchanged,
            torch.where(chosen[:, None], present[:, partners], present),
            torch.where(chosen_target, flipped, target),
        )


def take(view: CachedView, indices: np.ndarray) -> torch.Tensor:
    """(B, slice, H, W) uint8 copied from the memory map in one call."""
    return torch.from_numpy(np.take(view.pixels, indices, axis=0))


def central(pixels: torch.Tensor, request: ViewRequest) -> torch.Tensor:
    """The middle of cached (B, slice, H, W) views: what the kernel cuts, byte for byte."""
    first = (pixels.shape[1] - request.slices.count) // 2
    edge = (pixels.shape[-1] - request.size_px) // 2
    inner = slice(edge, edge + request.size_px)
    return pixels[:, first : first + request.slices.count, inner, inner]


def slice_window(
    pixels: torch.Tensor, request: ViewRequest, settings: Augmentation, generator: torch.Generator
) -> torch.Tensor:
    """The request's number of slices out of the cached ones, moved by up to slice_jitter for each sample."""
    spare = (pixels.shape[1] - request.slices.count) // 2
    reach = min(settings.slice_jitter, spare, MARGIN_SLICES)
    if not reach:
        return pixels[:, spare : spare + request.slices.count]
    moves = torch.randint(-reach, reach + 1, (len(pixels), 1), generator=generator)
    index = (torch.arange(request.slices.count) + spare + moves).to(pixels.device)
    return pixels.gather(1, index[:, :, None, None].expand(-1, -1, *pixels.shape[2:]))


def _is_identity(settings: Augmentation) -> bool:
    return not (settings.rotate_deg or settings.shear_deg or settings.scale)
