"""One fixed batch of a network's samples, as training would take it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from kernels.lumbar.labels import GROUPS
from training.data.cache.stack_cache import build_cache
from training.data.samples.batch import Batch, Samples
from training.data.samples.member_samples import MemberSamples
from training.data.tables import MISSING, Tables, read_tables
from training.fitting.losses.target_heatmaps import known_points
from training.recipe_schema.schema import MemberRecipe

SEED = 42
# The largest published batch of whole studies is 16, and some studies lack a view.
STUDIES = 20
# Standard deviation (mm, each axis) that localisers have on the phantom.
LOCALISER_ERROR_MM = {"sagittal_t1": 1.5, "sagittal_t2": 1.5, "axial_t2": 1.5}
OFFSETS_MM = dict.fromkeys(GROUPS, np.random.default_rng(SEED).normal(0, 1.5, (100, 3)))
# The batch is chosen from so many.
CANDIDATES = 8


@dataclass
class FixedBatch:
    """training.data.samples.batch.Samples of a single batch."""

    batch: Batch
    steps_per_epoch: int = 1

    def training(self, epoch: int) -> Iterator[Batch]:
        """The batch."""
        yield self.batch

    def validation(self) -> Iterator[Batch]:
        """The batch."""
        yield self.batch


def read_some(data: Path) -> Tables:
    """The tables of the first studies.  Raises TablesError."""
    whole = read_tables(data)
    labels = whole.labels.iloc[:STUDIES]
    series = {study: one for study, one in whole.series.items() if study in labels.index}
    coordinates = whole.coordinates[whole.coordinates["study_id"].isin(labels.index)].reset_index(drop=True)
    return replace(whole, labels=labels, series=series, coordinates=coordinates)


def samples_of(member: MemberRecipe, data: Path, cache: Path, device: torch.device) -> Samples:
    """A network's samples of the first studies, for training.  Raises ValueError, CacheError, TablesError."""
    tables = read_some(data)
    opened = build_cache(data, tables, cache, jobs=1)
    studies = list(tables.labels.index)
    return MemberSamples(opened, tables, member, studies, [], device, SEED, LOCALISER_ERROR_MM, 1, OFFSETS_MM)


def fixed_batch(samples: Samples) -> Batch:
    """The most telling of the first batches of training: one whose samples all have the same labels teaches nothing.

    Raises ValueError for a batch of which nothing can be learned.
    """
    batch = max(islice(samples.training(1), CANDIDATES), key=_telling)
    if not _telling(batch):
        raise ValueError("all samples of the batch have the same labels: name more studies, or a larger batch")
    return batch


def _telling(batch: Batch) -> int:
    """Graders: pairs of samples with different labels; localisers: known landmarks."""
    target = batch.target
    if target.is_floating_point():
        return int(known_points(target).sum())
    known = target != MISSING
    differs = (target[:, None] != target[None]) & known[:, None] & known[None]  # (B, B, K)
    return int(differs.sum())
