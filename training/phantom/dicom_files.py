"""Images to DICOM files with the tags, the transfer syntax and the quirks of the competition's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, RLELossless

from .protocol import SeriesPlan, SlicePlan
from .rle import encode_rle

ENHANCED_MR_STORAGE = UID("1.2.840.10008.5.1.4.1.1.4.1")
_IMPLEMENTATION = UID("1.2.40.0.13.1.1.1")
_FRAME_ROOT = "1.2.826.0.1.3680043.8.498."


def write_slice(
    folder: Path, study_id: int, series_id: int, plan: SeriesPlan, place: SlicePlan, image: NDArray[np.uint16]
) -> None:
    """Write one image as `<instance>.dcm`; like the competition's, without SOP class and modality."""
    meta = _file_meta(study_id, place.instance)
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.ContentDate = "20240503"
    dataset.ContentTime = "221635.094837"
    dataset.SeriesDescription = plan.title
    dataset.PatientID = str(study_id)
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID = str(study_id)
    dataset.SeriesInstanceUID = f"{study_id}.{series_id}"
    # Drawn anew for each series: it does not show which series share a frame.
    dataset.FrameOfReferenceUID = f"{_FRAME_ROOT}{study_id}{series_id}"
    dataset.InstanceNumber = place.instance
    _set_geometry(dataset, plan, place)
    _set_pixels(dataset, plan, image)
    dataset.save_as(folder / f"{place.instance}.dcm", enforce_file_format=True)


def _file_meta(study_id: int, instance: int) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = ENHANCED_MR_STORAGE
    # Repeats across the series of a study, as it does in the competition's files.
    meta.MediaStorageSOPInstanceUID = UID(f"{study_id}.1.{instance}")
    meta.TransferSyntaxUID = RLELossless
    meta.ImplementationClassUID = _IMPLEMENTATION
    meta.ImplementationVersionName = "PYDICOM 2.4.2"
    return meta


def _set_geometry(dataset: Dataset, plan: SeriesPlan, place: SlicePlan) -> None:
    if plan.states_thickness:
        dataset.SliceThickness = f"{plan.thickness_mm:g}"
    if plan.states_distance:
        dataset.SpacingBetweenSlices = f"{plan.distance_mm:g}"
    dataset.ImagePositionPatient = [_decimal(value) for value in place.position]
    dataset.ImageOrientationPatient = [_decimal(v) for v in (*place.along_row, *place.along_column)]
    dataset.SliceLocation = _decimal(float(place.position @ place.normal))
    dataset.PixelSpacing = [_decimal(plan.spacing_mm)] * 2


def _decimal(value: float) -> str:
    """A decimal string: at most 16 characters, no negative nought."""
    return f"{round(float(value), 8) + 0.0:.8g}"


def _set_pixels(dataset: Dataset, plan: SeriesPlan, image: NDArray[np.uint16]) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = image.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    # Scanners choose the window from each image, so that it differs from slice to slice.
    bright = float(image[::4, ::4].mean() + 2.5 * image[::4, ::4].std())
    dataset.WindowCenter = str(round(0.5 * bright))
    dataset.WindowWidth = str(max(1, round(bright)))
    if plan.states_rescale:
        dataset.RescaleIntercept = "0"
        dataset.RescaleSlope = "1"
    dataset.PixelData = encapsulate([encode_rle(image)])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
