"""SPIDER → a folder in the competition's layout, complete or not there at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from kernels.lumbar.dicom.read_study import read_study
from kernels.whole_folder import whole_folder
from training.data.cache.decode import in_processes
from training.data.spider.canal import CanalLevel, DoubtfulError, canal_levels
from training.data.spider.mha import SpiderError, Volume, read_volume
from training.data.spider.series import SeriesNames, clinical, write_series
from training.data.spider.source import LUMBAR_DISCS, Patient, SpiderFolder, read_folder
from training.data.spider.tables import PICTURES, Click, ImportedStudy, LeftOut, write_notes, write_tables

T1, T2 = "Sagittal T1", "Sagittal T2/STIR"
# A study is named by its patient's number; its series by this and one digit more.
SERIES_DIGITS = {"t1": "1", "t2": "2", "t2_SPACE": "3"}
# A mask lies on its image if no corner is farther off.
SAME_PLACE_MM = 1.0


@dataclass(frozen=True)
class ImportOrder:
    """One patient to be imported."""

    source: SpiderFolder
    patient: Patient
    is_test: bool


def import_spider(source: Path, out: Path, jobs: int = 1, *, has_test: bool = True) -> str:
    """Import all patients, some of them for the test; returns what came of it, in a few lines.

    Raises SpiderError, BusyError.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SpiderError(f"{out} holds something already: remove it, or name another folder with OUT=")
    found = read_folder(source)
    test = found.test_patients() if has_test else frozenset()
    orders = [ImportOrder(found, patient, patient.number in test) for patient in found.patients]
    with whole_folder(out) as place:
        for name in ("train_images", "test_images", str(PICTURES)):
            (place / name).mkdir(parents=True)
        results = _import_all(orders, place, jobs)
        results += [LeftOut(number, "it has no T2 series") for number in found.without_t2]
        studies = [one for one in results if isinstance(one, ImportedStudy)]
        left_out = [one for one in results if isinstance(one, LeftOut)]
        if not any(not one.is_test for one in studies):
            reasons = "; ".join(f"{one.patient}: {one.reason}" for one in left_out[:3])
            raise SpiderError(f"{source} leaves no patient to train on ({reasons or 'all are test patients'})")
        write_tables(place, studies, found.gradings)
        return write_notes(place, studies, left_out)


def _import_all(orders: Sequence[ImportOrder], place: Path, jobs: int) -> list[ImportedStudy | LeftOut]:
    results = in_processes(partial(import_patient, place), orders, min(jobs, len(orders)))
    return list(tqdm(results, total=len(orders), desc="import", unit="patient"))


def import_patient(place: Path, order: ImportOrder) -> ImportedStudy | LeftOut:
    """Write one patient's DICOM files and picture below `place`.  Raises SpiderError for a damaged file."""
    source, patient = order.source, order.patient
    image, mask = read_volume(source.image(patient.t2)), read_volume(source.mask(patient.t2))
    try:
        levels = _levels(source, patient, image, mask)
    except DoubtfulError as doubt:
        return LeftOut(patient.number, str(doubt))
    names, folder = _names(patient), place / ("test_images" if order.is_test else "train_images") / patient.number
    thick = clinical(image)
    clicks = [_click(names[0], level, one, thick) for level, one in levels.items()]
    if any(click is None for click in clicks):
        return LeftOut(patient.number, "a level lies outside of the T2 images")
    write_series(folder / names[0].series, thick, names[0], source.overview.get(patient.t2, {}))
    if patient.t1 is not None:
        t1 = clinical(read_volume(source.image(patient.t1)))
        write_series(folder / names[1].series, t1, names[1], source.overview.get(patient.t1, {}))
    if not order.is_test:
        _write_picture(place, folder, names, [click for click in clicks if click])
    height, width = thick.voxels.shape[1:]
    return ImportedStudy(order.is_test, tuple(names), levels, tuple(click for click in clicks if click), height, width)


def _levels(source: SpiderFolder, patient: Patient, image: Volume, mask: Volume) -> dict[str, CanalLevel]:
    """The canal of each level.  Raises DoubtfulError."""
    if not mask.lies_as(image, SAME_PLACE_MM):
        raise DoubtfulError("the mask has another shape or place than its image")
    if (graded := source.discs(patient.number)) < LUMBAR_DISCS:
        raise DoubtfulError(f"radiological_gradings.csv grades {graded} of the five lowest discs")
    return canal_levels(Volume(mask.voxels, image.origin_mm, image.steps_mm))


def _names(patient: Patient) -> list[SeriesNames]:
    """T2, and T1 if there is one."""
    kinds = [(patient.t2, T2), *([(patient.t1, T1)] if patient.t1 else [])]
    return [
        SeriesNames(patient.number, patient.number + SERIES_DIGITS[name.partition("_")[2]], kind)
        for name, kind in kinds
    ]


def _click(names: SeriesNames, level: str, found: CanalLevel, volume: Volume) -> Click | None:
    """The point in the pixels of the nearest slice; None outside of the images."""
    index, row, column = volume.to_index(found.point_mm)
    slices, height, width = volume.voxels.shape
    if not (-0.5 <= row <= height - 0.5 and -0.5 <= column <= width - 0.5 and -1 <= index <= slices):
        return None
    nearest = int(np.clip(np.rint(index), 0, slices - 1))
    return Click(names.series, nearest + 1, level, float(column), float(row))


def _write_picture(place: Path, folder: Path, names: Sequence[SeriesNames], clicks: Sequence[Click]) -> None:
    """The slice of the middle level as a JPEG for pretraining, in the kernel's grey window; reads the files back."""
    study = read_study(folder, folder.name, [(one.series, "sagittal_t2") for one in names[:1]])
    stacks = study.of_kind("sagittal_t2")
    if not stacks:
        reasons = "; ".join(problem.detail for problem in study.problems)
        raise SpiderError(f"patient {folder.name} cannot be read back ({reasons}): leave its files out")
    instance = clicks[len(clicks) // 2].instance
    pixels = stacks[0].pixels[list(stacks[0].instances).index(instance)]
    cv2.imwrite(str(place / PICTURES / f"{folder.name}_t2.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
