"""The samples of one network in one fold: cached crops in, augmented and normalised batches out.

Whole batches are taken from the memory map at once and augmented on the device; there are no workers and no per-sample
decoding, so the loader is never what a GPU waits for.
"""

from __future__ import annotations

import logging
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
from training.data.augment import (
    grey_changes,
    inside_only,
    random_affine,
    sharpen_or_blur,
    shuffle_slices,
    warp,
    warp_points,
)
from training.data.batch import Batch
from training.data.cache import Cache, CachedView
from training.data.tables import MISSING, Tables
from training.recipe import Augmentation, MemberRecipe

log = logging.getLogger("samples")


class MemberSamples:
    """training.data.batch.Samples of one member: implements training(epoch), validation() and steps_per_epoch.

    localiser_error_mm: series kind → standard deviation, each axis, of what the fold's localiser misses by.
    A localiser's slice is its place before slices are put in random order.
    Raises ValueError where nothing is left to train on, or where a member to be mirrored has no mirrored parts.
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
        self.partners = self._mirrored_views()
        self._set_targets(cache, tables.labels)
        place = {study: number for number, study in enumerate(cache.studies)}
        self.train_indices = self._usable([place[study] for study in train_studies])
        self.validation_indices = self._usable([place[study] for study in validation_studies])
        if not len(self.train_indices):
            raise ValueError("no training study has both a label and an image of what this network looks at")
        batch = self.fitting.optimisation.batch_size
        # The last, smaller batch is left out: one sample alone has no statistics to normalise by.
        self.steps_per_epoch = max(len(self.train_indices) // batch, 1)
        # Used again for every batch: fresh memory costs several times the copy.  Pinned, a GPU reads it directly.
        pinned = device.type == "cuda"
        shapes = [(batch, *view.pixels.shape[1:]) for view in self.views]
        self.buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=pinned) for shape in shapes]

    def _mirrored_views(self) -> list[int] | None:
        """For each view the one that shows it in the mirrored study; None where nothing is to be mirrored.

        Units of one side are left alone: mirror_right shows both sides as left ones.
        """
        if not self.fitting.augmentation.mirror or UNITS[self.member.unit][0].side is not None:
            return None
        try:
            partners = [self.member.inputs.index(request.mirrored()) for request in self.member.inputs]
            self.mirrored_order = mirrored_targets(self.member)
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
        jitter_mm = self.fitting.augmentation.jitter_mm
        if jitter_mm == "localiser":
            if request.series not in localiser_error_mm:
                log.warning("%s: nothing is known of what localisers miss by in %s", self.member.name, request.series)
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
        for index in np.flatnonzero(self.views[0].present).tolist():
            study, names = cache.studies[index // len(units)], rows[index % len(units)]
            points = cache.landmarks.get(study, {})
            known = [place for place, name in enumerate(names) if name in points]
            if known:
                planes = self.views[0].planes(index)
                self.targets[index, known] = project_points(planes, np.stack([points[names[place]] for place in known]))
        # In pixels of the cached view, of which a batch shows a part.
        self.targets = inside_only(torch.from_numpy(self.targets), self.views[0].pixels.shape[-1]).numpy()
        self.labelled = np.isfinite(self.targets).any((1, 2))

    def _usable(self, studies: Sequence[int]) -> np.ndarray:
        units = len(UNITS[self.member.unit])
        indices = np.array([study * units + unit for study in studies for unit in range(units)], int)
        usable = np.logical_or.reduce([view.present for view in self.views]) & self.labelled
        return indices[usable[indices]]

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

    def read(self, indices: np.ndarray) -> list[torch.Tensor]:
        """The cached views (B, slice, H, W) uint8 of some samples, in memory that the next call uses again."""
        parts = [buffer[: len(indices)] for buffer in self.buffers]
        return [take(view, indices, out) for view, out in zip(self.views, parts, strict=True)]

    def _batch(self, indices: np.ndarray, generator: torch.Generator | None) -> Batch:
        pixels = [view.to(self.device) for view in self.read(indices)]
        present = torch.from_numpy(np.stack([view.present[indices] for view in self.views], 1)).float().to(self.device)
        target = torch.from_numpy(self.targets[indices]).to(self.device)
        if generator is not None and self.partners is not None:
            pixels, present, target = self._mirror(pixels, present, target, generator)
        views = []
        for number, request in enumerate(self.member.inputs):
            if generator is None:
                grey, moved = central(pixels[number], target, request)
            else:
                grey, moved = self._augmented(number, pixels[number], target, generator)
            if self.member.role == "localiser" and number == 0:
                target = moved
            views.append(normalise(grey, request.normalisation) * present[:, number, None, None, None])
        return Batch(tuple(views), present, target)

    def _augmented(
        self, number: int, pixels: torch.Tensor, points: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One view with all its random changes, and its points if it has any."""
        request, settings = self.member.inputs[number], self.fitting.augmentation
        window, first = slice_window(pixels, request.slices.count, settings.slice_jitter, generator)
        grey = window.float()
        matrix = random_affine(settings, len(grey), generator)
        shift_px = torch.randn(len(grey), 2, generator=generator) * self.jitter_px[number]
        from_px = grey.shape[-1]
        if not _is_identity(settings) or self.jitter_px[number] or from_px != request.size_px:
            grey = warp(grey, matrix, shift_px, request.size_px)
        if points.dim() == 3:
            points = warp_points(points, matrix.to(points.device), shift_px.to(points.device), from_px, request.size_px)
            points[..., 0] -= first.to(points.device)
        grey = sharpen_or_blur(grey, settings.sharpen_or_blur, generator)
        grey = grey_changes(grey, settings, generator)
        if settings.slice_shuffle and request.series in settings.slice_shuffle_series:
            grey = shuffle_slices(grey, settings.slice_shuffle, generator)
        return grey, points

    def _mirror(
        self, pixels: list[torch.Tensor], present: torch.Tensor, target: torch.Tensor, generator: torch.Generator
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Show some samples mirrored; kernels.lumbar.feed.mirrored_tensors does the same to all of them."""
        assert self.partners is not None
        chosen = (torch.rand(len(target), generator=generator) < self.fitting.augmentation.mirror).to(self.device)
        unit = UNITS[self.member.unit][0]
        exchanged = []
        for own, partner, request in zip(pixels, self.partners, self.member.inputs, strict=True):
            sided = request.mirror_right and request.side(unit) is not None
            other = pixels[partner] if sided else mirror_pixels(pixels[partner], request.series)
            exchanged.append(torch.where(chosen[:, None, None, None], other, own))
        flipped = target[:, self.mirrored_order].clone()
        if self.member.role == "localiser":
            axis = 2 if self.member.inputs[0].series == "axial_t2" else 0
            last = pixels[0].shape[-1 if axis == 2 else 1] - 1
            flipped[..., axis] = last - flipped[..., axis]
        chosen_target = chosen.view(-1, *(1,) * (target.dim() - 1))
        return (
            exchanged,
            torch.where(chosen[:, None], present[:, self.partners], present),
            torch.where(chosen_target, flipped, target),
        )


def take(view: CachedView, indices: np.ndarray, out: torch.Tensor | None = None) -> torch.Tensor:
    """(B, slice, H, W) uint8 copied from the memory map in one call, to `out` where given."""
    places = indices if view.places is None else view.places[indices]
    if out is None:
        return torch.from_numpy(np.take(view.pixels, places, axis=0))
    # Any mode but "raise" writes to `out` without a copy between; indices of samples are never out of range.
    np.take(view.pixels, places, axis=0, out=out.numpy(), mode="clip")
    return out


def central(pixels: torch.Tensor, points: torch.Tensor, request: ViewRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """The middle of cached (B, slice, H, W) views: what the kernel cuts, byte for byte; points (B, K, 3) go with it."""
    first = (pixels.shape[1] - request.slices.count) // 2
    edge = (pixels.shape[-1] - request.size_px) // 2
    inner = slice(edge, edge + request.size_px)
    if points.dim() == 3:
        points = inside_only(points - torch.tensor([first, edge, edge], device=points.device), request.size_px)
    return pixels[:, first : first + request.slices.count, inner, inner], points


def slice_window(
    pixels: torch.Tensor, count: int, jitter: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` neighbouring slices of each of (B, slice, H, W), up to `jitter` from the middle, and (B, 1) the first."""
    spare = (pixels.shape[1] - count) // 2
    reach = min(jitter, spare)
    if not reach:
        return pixels[:, spare : spare + count], torch.full((len(pixels), 1), spare)
    first = torch.randint(spare - reach, spare + reach + 1, (len(pixels), 1), generator=generator)
    index = (first + torch.arange(count)).to(pixels.device)
    return pixels.gather(1, index[:, :, None, None].expand(-1, -1, *pixels.shape[2:])), first


def _is_identity(settings: Augmentation) -> bool:
    return not (settings.rotate_deg or settings.shear_deg or settings.scale)
