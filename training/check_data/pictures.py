"""Pictures of label points that contradict each other or their images: the slices they were set on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.problems import Problem
from training.check_data.findings import ABOUT_LABELS
from training.check_data.splits import Split
from training.evaluation.overlays import draw_located

MOST_PICTURES = 6


def draw_contradictions(
    split: Split, findings: Sequence[Problem], points: Mapping[str, Mapping[str, np.ndarray]], out: Path
) -> list[Path]:
    """Draw a handful of studies whose label points contradict each other, of every kind some; returns the files.

    `points`: study → row → (3,) patient mm of the label points.
    """
    chosen = _chosen(findings)
    drawn = []
    for study, its in chosen.items():
        read = read_study(split.images / study, study, split.series.get(study, []))
        if not read.stacks or not points.get(study):
            continue
        path = out / f"{its[0].kind}_{study}.png"
        caption = "\n".join(f"{one.kind}: {one.detail}" for one in its[:2])
        draw_located(read, {}, path, points[study], caption, truth_name="label point")
        drawn.append(path)
    return drawn


def _chosen(findings: Sequence[Problem]) -> dict[str, list[Problem]]:
    """Study → its contradictions, of the first studies of each kind in turn."""
    by_kind: dict[str, list[str]] = {kind: [] for kind in sorted(ABOUT_LABELS)}
    for one in findings:
        if one.kind in ABOUT_LABELS:
            by_kind[one.kind].append(one.study)
    in_turn = dict.fromkeys(study for study in chain(*zip_longest(*by_kind.values())) if study is not None)
    return {
        study: [one for one in findings if one.study == study and one.kind in ABOUT_LABELS]
        for study in list(in_turn)[:MOST_PICTURES]
    }
