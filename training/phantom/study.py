"""One study from its seed to its DICOM files: severity, anatomy, protocol, images, annotations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kernels.whole_folder import whole_folder

from .annotate import Click, annotate
from .axial import sample_axial
from .dicom_files import write_slice
from .protocol import SeriesPlan, sample_sagittal
from .render import render_series
from .severity import Severity, sample_severity
from .sizes import Anatomy, sample_anatomy


@dataclass(frozen=True)
class StudyOrder:
    """Folder, ids (enough for all series), seed and scale of a study to be made."""

    folder: Path
    study_id: int
    series_ids: tuple[int, ...]
    seed: tuple[int, ...]
    scale: float


@dataclass(frozen=True)
class PhantomStudy:
    """A study without its pixels; landmarks (25, 3) in patient mm, graded (25,) bool."""

    severity: Severity
    anatomy: Anatomy
    plans: list[SeriesPlan]
    landmarks: NDArray[np.float64]
    graded: NDArray[np.bool_]
    clicks: list[Click]


def sample_study(seed: tuple[int, ...], scale: float) -> PhantomStudy:
    """The study of a seed; its narrowing and anatomy do not depend on the scale of the images."""
    severity = sample_severity(np.random.default_rng((*seed, 0)))
    anatomy = sample_anatomy(np.random.default_rng((*seed, 1)), severity)
    rng = np.random.default_rng((*seed, 2))
    plans = [*sample_sagittal(rng, anatomy, scale), *sample_axial(rng, anatomy, scale)]
    landmarks = anatomy.landmarks()
    graded, clicks = annotate(np.random.default_rng((*seed, 3)), plans, landmarks)
    return PhantomStudy(severity, anatomy, plans, landmarks, graded, clicks)


def make_study(order: StudyOrder) -> PhantomStudy:
    """Sample a study and write its DICOM files to `folder/<series>/<instance>.dcm`.

    The folder appears when all its files are there; one that is there already is left as it is.
    """
    study = sample_study(order.seed, order.scale)
    if order.folder.exists():
        return study
    with whole_folder(order.folder) as partial:
        for number, (series_id, plan) in enumerate(zip(order.series_ids, study.plans, strict=False)):
            folder = partial / str(series_id)
            folder.mkdir()
            rng = np.random.default_rng((*order.seed, 4, number))
            for place, image in render_series(study.anatomy, plan, rng):
                write_slice(folder, order.study_id, series_id, plan, place, image)
    return study
