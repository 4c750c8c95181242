"""Targets of a network's samples: severities from the tables, or points projected into its first view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from kernels.lumbar.dicom.geometry import project_points, slice_distances
from kernels.lumbar.inputs.views import View
from kernels.lumbar.labels import GROUPS, ROW_INDEX, SEVERITIES, UNITS, Unit, group_of, row_of
from kernels.lumbar.specs import Member
from training.data.soft_labels import target_masses


def severities(labels: pd.DataFrame, studies: Sequence[str], member: Member) -> np.ndarray:
    """(N, K) int64 severities of N = studies × units samples, studies first; -100 = no label."""
    rows = [[row_of(target, unit) for target in member.targets] for unit in UNITS[member.unit]]
    chosen = np.stack([labels.loc[list(studies), names].to_numpy() for names in rows], 1)
    return chosen.reshape(-1, len(member.targets)).astype(np.int64)


def soft_severities(
    labels: pd.DataFrame, soft: np.ndarray, share: float, studies: Sequence[str], member: Member
) -> np.ndarray:
    """(N, K, 3) float32 target masses of the same samples; `soft` (studies, 25, 3) answers, NaN = unknown."""
    places = [[ROW_INDEX[row_of(target, unit)] for target in member.targets] for unit in UNITS[member.unit]]
    answers = soft[:, places].reshape(-1, len(member.targets), len(SEVERITIES))
    return target_masses(severities(labels, studies, member), answers, share)


def groups_of(member: Member) -> torch.Tensor:
    """(K,) index of each target's condition in GROUPS."""
    return torch.tensor([GROUPS.index(group_of(row_of(target, UNITS[member.unit][0]))) for target in member.targets])


def in_view(
    view: View | None, member: Member, unit: Unit, landmarks: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """A sample's targets as landmarks in its first view: (K, 3) slice, row, column in its pixels, NaN = unknown or
    outside; and (S, K) mm of each from each slice, NaN = unknown landmark or blank slice."""
    request = member.inputs[0]
    points = np.full((len(member.targets), 3), np.nan, np.float32)
    distance_mm = np.full((request.slices.count, len(member.targets)), np.nan, np.float32)
    names = [row_of(target, unit) for target in member.targets]
    known = [place for place, name in enumerate(names) if name in landmarks]
    if view is not None and known:
        its_own = np.stack([landmarks[names[place]] for place in known])
        points[known] = project_points(view.planes, its_own)
        distance_mm[view.first : view.first + len(view.planes), known] = slice_distances(view.planes, its_own)
        inside = ((points[:, 1:] > -0.5) & (points[:, 1:] < request.size_px - 0.5)).all(1)
        points[~inside] = np.nan
    return points, distance_mm
