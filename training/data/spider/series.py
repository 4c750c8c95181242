"""Volumes as clinical series: thin slices averaged, written as DICOM in the competition's layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from training.data.spider.mha import Volume

# Slices closer than this are averaged to about the thickness of 2D series; SPIDER's 3D ones are 0.9 to 1.1 mm apart.
THIN_MM, CLINICAL_MM = 2.6, 3.8
LARGEST = 4095
UID_ROOT = "1.2.826.0.1.3680043.8.498"
# Columns of overview.csv that become elements of the same name.
HEADER_VALUES = ("EchoTime", "RepetitionTime", "MagneticFieldStrength")


@dataclass(frozen=True)
class SeriesNames:
    """What a series is called in its files and in the tables."""

    study: str
    series: str
    kind: str
    """As in the competition's table: Sagittal T1 or Sagittal T2/STIR."""


def clinical(volume: Volume) -> Volume:
    """The volume with so many thin slices averaged that they are about CLINICAL_MM apart, from the middle outwards."""
    distance_mm = float(volume.spacing_mm[0])
    count = max(1, round(CLINICAL_MM / distance_mm)) if distance_mm < THIN_MM else 1
    groups = len(volume.voxels) // count
    if count == 1 or groups < 2:
        return volume
    first = (len(volume.voxels) - groups * count) // 2
    used = volume.voxels[first : first + groups * count].astype(np.float32)
    averaged = used.reshape(groups, count, *used.shape[1:]).mean(1)
    origin_mm = volume.origin_mm + (first + (count - 1) / 2) * volume.steps_mm[0]
    steps_mm = volume.steps_mm * np.array([[count], [1], [1]])
    return Volume(averaged, origin_mm, steps_mm)


def write_series(folder: Path, volume: Volume, names: SeriesNames, header: Mapping[str, str]) -> None:
    """Write <instance>.dcm of every slice, from 1 at the patient's right."""
    folder.mkdir(parents=True)
    grey = _unsigned(volume.voxels)
    for index, image in enumerate(grey):
        dataset = _dataset(names, index + 1)
        _set_geometry(dataset, volume, index)
        for name in HEADER_VALUES:
            if (value := _number(header.get(name, ""))) is not None:
                setattr(dataset, name, format_number_as_ds(value))
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows, dataset.Columns = image.shape
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.PixelData = image.astype("<u2").tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.save_as(folder / f"{index + 1}.dcm", enforce_file_format=True)


def _dataset(names: SeriesNames, instance: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"{UID_ROOT}.{names.study}.{names.series}.{instance}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.SeriesDescription = "MR", names.kind
    dataset.PatientID, dataset.PatientPosition = names.study, "HFS"
    dataset.StudyInstanceUID = f"{UID_ROOT}.{names.study}"
    dataset.SeriesInstanceUID = f"{UID_ROOT}.{names.study}.{names.series}"
    dataset.FrameOfReferenceUID = dataset.StudyInstanceUID
    dataset.InstanceNumber = instance
    return dataset


def _set_geometry(dataset: Dataset, volume: Volume, index: int) -> None:
    across, between_rows, between_columns = volume.spacing_mm
    _, row_mm, column_mm = volume.steps_mm
    directions = [*(column_mm / between_columns), *(row_mm / between_rows)]
    dataset.ImageOrientationPatient = [_decimal(value) for value in directions]
    dataset.ImagePositionPatient = [_decimal(value) for value in volume.to_patient(np.array([index, 0, 0]))]
    dataset.PixelSpacing = [_decimal(between_rows), _decimal(between_columns)]
    dataset.SliceThickness = dataset.SpacingBetweenSlices = _decimal(across)


def _decimal(value: float) -> str:
    """A decimal string: at most 16 characters, no negative nought."""
    return format_number_as_ds(round(float(value), 8) + 0.0)


def _unsigned(voxels: np.ndarray) -> np.ndarray:
    """Grey values as 16 bits: as they are where they fit, else stretched over 0 to LARGEST."""
    low, high = float(voxels.min()), float(voxels.max())
    is_whole = voxels.dtype.kind in "iu" or high > 255
    if low >= 0 and high <= np.iinfo(np.uint16).max and is_whole:
        return np.rint(voxels).astype(np.uint16)
    scale = LARGEST / (high - low) if high > low else 0.0
    return np.rint((voxels - low) * scale).astype(np.uint16)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
