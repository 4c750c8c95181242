"""The samples of one network in one fold: stacks → augmented and normalised batches.

Threads cut the next batches from memory-mapped stacks while the device works on the last one; rotation, scale, jitter
and the choice of slices are part of that one sampling.  Grey values, mirroring and blending are changed on the device,
a batch at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
import torch
from tqdm import tqdm

from kernels.lumbar.inputs.normalise import normalise
from kernels.lumbar.labels import ROWS, SEVERITIES, UNITS
from kernels.lumbar.specs import SeriesKind, ViewRequest
from training.data.cache.stack_cache import PROGRESS_AFTER_S, StackCache
from training.data.samples.ahead import ahead
from training.data.samples.augment import grey_changes, sharpen_or_blur, shuffle_slices
from training.data.samples.batch import Batch, Origin, send
from training.data.samples.blend import blended, dihedral_some, turn_some
from training.data.samples.cut_batches import Cut, Cutter, chosen_by
from training.data.samples.mirror import mirror_some, mirrored_views
from training.data.samples.sample_targets import groups_of, severities, soft_severities
from training.data.samples.shading import shaded
from training.data.tables import MISSING, Tables
from training.recipe_schema.schema import MemberRecipe

# Pixels of the held-out studies that stay in memory from epoch to epoch.
MOST_KEPT_BYTES = 1 << 28
log = logging.getLogger("samples")


class MemberSamples:
    """training.data.samples.batch.Samples of one network.

    localiser_error_mm: series kind → standard deviation (mm, each axis) of the fold's localisation error;
    localiser_offsets_mm: condition group → (N, 3) such errors as measured (patient mm, those of right sides mirrored).
    `soft_labels`: training study → (25, 3) probabilities (NaN = unknown), which take their share of the targets.
    `threads`: number of threads that cut batches; these are the same for any number.
    A localiser's target slice is its index before slices are shuffled; errors are those of the landmarks from which its
    views start.
    Raises ValueError without usable training studies, or if mirroring lacks a mirrored view or target.
    """

    cutter_type = Cutter

    def __init__(
        self,
        cache: StackCache,
        tables: Tables,
        recipe: MemberRecipe,
        train_studies: Sequence[str],
        validation_studies: Sequence[str],
        device: torch.device,
        seed: int,
        localiser_error_mm: Mapping[str, float],
        threads: int = 1,
        localiser_offsets_mm: Mapping[str, np.ndarray] | None = None,
        soft_labels: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.member, self.fitting = recipe.member, recipe.fitting
        self.device, self.seed, self.threads = device, seed, threads
        is_sided = UNITS[self.member.unit][0].side is not None  # mirror_right shows both sides as left ones
        self.partners = mirrored_views(self.member) if self.fitting.augmentation.mirror and not is_sided else None
        self.is_grader = self.member.role == "grader"
        needs_distances = self.fitting.loss == "valid_slices_bce" or self.fitting.auxiliary.depth > 0
        self.with_points = not self.is_grader or needs_distances
        augmentation, pinned = self.fitting.augmentation, device.type == "cuda"
        jitter_mm, offsets_mm = self._jitter_mm(localiser_error_mm), self._offsets_mm(localiser_offsets_mm or {})
        self.cutter = self.cutter_type(
            cache, self.member, augmentation, jitter_mm, self.with_points, pinned, offsets_mm
        )
        self.severities = severities(tables.labels, cache.studies, self.member) if self.is_grader else None
        self.soft = self._soft(cache.studies, tables, soft_labels or {}) if self.is_grader else None
        self.groups = send(groups_of(self.member), device)
        place = {study: number for number, study in enumerate(cache.studies)}
        usable = self._usable([place[study] for study in (*train_studies, *validation_studies)])
        self.train_samples = [one for study in train_studies for one in usable[place[study]]]
        self.validation_samples = [one for study in validation_studies for one in usable[place[study]]]
        if not self.train_samples:
            raise ValueError(
                "no training study has both a label and an image of this network's views: name a recipe of what the "
                "data have (canal_only needs a sagittal T2 series alone), or leave graders out with LOCALISERS_ONLY=1"
            )
        # The last, smaller batch is dropped: batch normalisation needs more than one sample.
        self.steps_per_epoch = max(len(self.train_samples) // self.fitting.optimisation.batch_size, 1)
        self._kept: list[Cut] | None = None

    def _soft(self, studies: Sequence[str], tables: Tables, soft_labels: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """(N, K, 3) target masses of all samples, where the recipe mixes soft labels into them; held-out studies have
        none of these."""
        share = self.fitting.labels.soft
        if share is None or not soft_labels:
            return None
        unknown = np.full((len(ROWS), len(SEVERITIES)), np.nan)
        answers = np.stack([soft_labels.get(study, unknown) for study in studies])
        return soft_severities(tables.labels, answers, share, studies, self.member)

    def _jitter_mm(self, localiser_error_mm: Mapping[str, float]) -> dict[str, float]:
        """Series kind → standard deviation (mm, each axis) of the landmark jitter in training."""
        jitter_mm = self.fitting.augmentation.jitter_mm
        if jitter_mm != "localiser":
            return dict.fromkeys(get_args(SeriesKind), jitter_mm)
        seen = {request.series for request in self.member.inputs if request.centre}
        seen |= {"sagittal_t2" for request in self.member.inputs if request.marks}
        for series in sorted(seen - set(localiser_error_mm)):
            log.warning("%s: no localisation error is known for %s", self.member.name, series)
        return {series: localiser_error_mm.get(series, 0.0) for series in get_args(SeriesKind)}

    def _offsets_mm(self, measured: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Condition group → (N, 3) errors of the landmarks that choose slices, where the recipe draws from them."""
        if self.fitting.augmentation.slice_jitter != "localiser":
            return {}
        for group in sorted({chosen_by(request) for request in self.member.inputs} - {"", *measured}):
            log.warning("%s: no localisation error is known for %s landmarks", self.member.name, group)
        return {group: offsets for group, offsets in measured.items() if len(offsets)}

    def _usable(self, studies: Sequence[int]) -> dict[int, list[np.ndarray]]:
        """Study → indices of samples: each unit with a label and an image, or all such units together."""
        units, found = len(UNITS[self.member.unit]), {}
        for study in tqdm(
            dict.fromkeys(studies), desc=f"samples of {self.member.name}", unit="study", delay=PROGRESS_AFTER_S
        ):
            indices = [index for index in range(study * units, (study + 1) * units) if self._is_usable(index)]
            whole = self.fitting.optimisation.whole_studies
            found[study] = [np.array(part) for part in ([indices] if whole else [[one] for one in indices]) if part]
        return found

    def _is_usable(self, index: int) -> bool:
        if self.severities is not None:
            known = self.severities[index] != MISSING if self.soft is None else self.soft[index] > 0
            if not known.any():
                return False
        views = self.cutter.placed(index)
        if self.is_grader or views[0] is None:
            return self.is_grader and any(view is not None for view in views)
        return bool(np.isfinite(self.cutter.points(index, replace(views[0]))[0]).any())

    def training(self, epoch: int) -> Iterator[Batch]:
        """Shuffled, augmented batches, determined by the epoch number."""
        for indices, generator, drawn in self._ahead(epoch):
            batch = self._augmented(self._sent(drawn, indices), generator)
            if self.is_grader:
                whole = self.fitting.optimisation.whole_studies
                batch = blended(batch, self.fitting.augmentation, epoch, generator, whole)
            yield batch

    def _ahead(self, epoch: int) -> Iterator[tuple[np.ndarray, torch.Generator, Cut]]:
        """Indices, random generator and pixels of each batch of an epoch; the generator is the batch's own."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        samples, size = self.train_samples, self.fitting.optimisation.batch_size
        order = torch.randperm(len(samples), generator=generator).tolist()
        seeds = torch.randint(2**62, (self.steps_per_epoch,), generator=generator).tolist()

        def task(step: int) -> tuple[np.ndarray, torch.Generator, Cut]:
            indices = np.concatenate([samples[number] for number in order[step * size : (step + 1) * size]])
            own = torch.Generator().manual_seed(seeds[step])
            return indices, own, self.cutter.cut(indices, self.cutter.draw(len(indices), own))

        return ahead((partial(task, step) for step in range(self.steps_per_epoch)), self.threads)

    def validation(self) -> Iterator[Batch]:
        """All samples of the held-out studies, in order, cut as by the kernel at the true landmarks."""
        samples, size = self.validation_samples, self.fitting.optimisation.batch_size
        batches = [np.concatenate(samples[start : start + size]) for start in range(0, len(samples), size)]
        for indices, cut in zip(batches, self._held_out(batches), strict=True):
            batch = self._sent(cut, indices)
            pixel_mm = send(cut.pixel_mm, self.device) if self.cutter_type.knows_spacing else None
            yield replace(batch, views=self._normalised(batch.views, batch.present), pixel_mm=pixel_mm)

    def _held_out(self, batches: Sequence[np.ndarray]) -> Iterable[Cut]:
        """The batches' pixels: kept where they are few, else cut anew."""
        if self._kept is not None:
            return self._kept
        cuts = ahead((partial(self.cutter.cut, indices, None) for indices in batches), self.threads)
        of_sample = sum(request.slices.count * request.size_px**2 for request in self.member.inputs)
        if sum(map(len, batches)) * of_sample > MOST_KEPT_BYTES:
            return cuts
        self._kept = list(cuts)
        return self._kept

    def _sent(self, cut: Cut, indices: np.ndarray) -> Batch:
        """The batch on the device, its views still uint8."""
        targets = self.severities if self.soft is None else self.soft
        target = cut.points if targets is None else torch.from_numpy(targets[indices])
        return Batch(
            tuple(send(view, self.device) for view in cut.views),
            send(cut.present, self.device),
            send(target, self.device),
            send(cut.distance_mm, self.device) if self.with_points else None,
            self._origin(indices),
        )

    def _origin(self, indices: np.ndarray) -> Origin | None:
        if not self.is_grader:
            return None
        of_studies, units = np.divmod(indices, len(UNITS[self.member.unit]))
        studies = np.unique(of_studies, return_inverse=True)[1]
        on_device = [send(torch.from_numpy(one), self.device) for one in (studies, units)]
        return Origin(on_device[0], self.groups, on_device[1])

    def _augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        """All changes but those of cutting and blending; then normalisation."""
        settings, count = self.fitting.augmentation, len(batch.target)
        if self.partners is not None:
            chosen = torch.rand(count, generator=generator) < settings.mirror
            batch = mirror_some(batch, self.member, self.partners, send(chosen, self.device))
        if settings.front_to_back:
            chosen = torch.rand(count, generator=generator) < settings.front_to_back
            batch = turn_some(batch, self.member.inputs, send(chosen, self.device))
        views = [
            self._grey(view, request, generator) for view, request in zip(batch.views, self.member.inputs, strict=True)
        ]
        batch = replace(batch, views=self._normalised(views, batch.present))
        return dihedral_some(batch, settings.dihedral, generator) if settings.dihedral else batch

    def _grey(self, view: torch.Tensor, request: ViewRequest, generator: torch.Generator) -> torch.Tensor:
        """(B, S, H, W) with changed grey values and order of slices."""
        settings, grey = self.fitting.augmentation, view.float()
        if not request.marks:
            grey = sharpen_or_blur(grey, settings.sharpen_or_blur, generator)
            grey = grey_changes(grey, settings, generator)
            grey = shaded(grey, settings, generator)
            if request.slices.has_blanks:  # they stay zero
                grey = grey * (view.amax((2, 3), keepdim=True) > 0)
        if settings.slice_shuffle and request.series in settings.slice_shuffle_series:
            grey = shuffle_slices(grey, settings.slice_shuffle, generator)
        return grey

    def _normalised(self, views: Sequence[torch.Tensor], present: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Network inputs; zeros where a view is missing."""
        return tuple(
            normalise(view, request.normalisation) * present[:, number, None, None, None]
            for number, (view, request) in enumerate(zip(views, self.member.inputs, strict=True))
        )
