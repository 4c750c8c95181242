"""Targets of a network's samples: severities from the tables, or points projected into its first view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from kernels.lumbar.dicom.geometry import project_points, slice_distances
from kernels.lumbar.labels import GROUPS, UNITS, group_of, row_of
from kernels.lumbar.specs import Member
from training.data.cache.crop_cache import Cache, CachedView
from training.data.samples.augment import inside_only
from training.data.tables import MISSING


@dataclass(frozen=True)
class Targets:
    """Targets of N = studies × units samples, studies first."""

    values: np.ndarray
    """Graders: (N, K) int64 severities, -100 = no label.  Localisers: (N, K, 3) float32 slice, row, column in pixels of
    the first view as cached, NaN = unknown or outside."""
    labelled: np.ndarray
    """(N,) bool: whether a sample has any target."""
    distance_mm: np.ndarray | None
    """(N, S, K) float32: see training.data.samples.batch.Batch."""


def severities(cache: Cache, labels: pd.DataFrame, member: Member, view: CachedView | None) -> Targets:
    """A grader's targets, with the distances of its landmarks from the slices of `view` if given."""
    chosen = np.stack([labels.loc[list(cache.studies), rows].to_numpy() for rows in _rows(member)], 1)
    values = chosen.reshape(-1, len(member.targets)).astype(np.int64)
    distance_mm = None if view is None else _in_view(cache, member, view)[1]
    return Targets(values, (values != MISSING).any(1), distance_mm)


def points(cache: Cache, member: Member, view: CachedView) -> Targets:
    """A localiser's targets in its first view."""
    places, distance_mm = _in_view(cache, member, view)
    values = inside_only(torch.from_numpy(places), view.pixels.shape[-1]).numpy()
    return Targets(values, np.isfinite(values).any((1, 2)), distance_mm)


def groups_of(member: Member) -> torch.Tensor:
    """(K,) index of each target's condition in GROUPS."""
    return torch.tensor([GROUPS.index(group_of(row)) for row in _rows(member)[0]])


def _rows(member: Member) -> list[list[str]]:
    return [[row_of(target, unit) for target in member.targets] for unit in UNITS[member.unit]]


def _in_view(cache: Cache, member: Member, view: CachedView) -> tuple[np.ndarray, np.ndarray]:
    """(N, K, 3) slice, row, column of the landmarks in the cached view, and (N, S, K) mm from its slices."""
    rows = _rows(member)
    count, slices = len(cache.studies) * len(rows), view.pixels.shape[1]
    places = np.full((count, len(member.targets), 3), np.nan, np.float32)
    distance_mm = np.full((count, slices, len(member.targets)), np.nan, np.float32)
    for index in np.flatnonzero(view.present).tolist():
        landmarks = cache.landmarks.get(cache.studies[index // len(rows)], {})
        names = rows[index % len(rows)]
        known = [place for place, name in enumerate(names) if name in landmarks]
        if known:
            planes, its_own = view.planes(index), np.stack([landmarks[names[place]] for place in known])
            places[index, known] = project_points(planes, its_own)
            distance_mm[index, : len(planes), known] = slice_distances(planes, its_own).T
    return places, distance_mm
