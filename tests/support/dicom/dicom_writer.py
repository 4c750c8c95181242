"""Writes DICOM for tests: single files and series of nearly any kind, independent of the project's phantom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
}
# Column and row directions of upright slices, and the step from slice to slice, to patient left and to the feet.
UPRIGHT = {
    "sagittal": (np.array([0.0, 1, 0]), np.array([0.0, 0, -1]), np.array([1.0, 0, 0])),
    "axial": (np.array([1.0, 0, 0]), np.array([0.0, 1, 0]), np.array([0.0, 0, -1])),
}


@dataclass(frozen=True)
class Grid:
    """Where a block of slices lies: all in patient mm."""

    origin: np.ndarray
    """Centre of pixel (0, 0) of slice 0."""
    column: np.ndarray
    """Unit direction of the columns."""
    row: np.ndarray
    step: np.ndarray
    """From one slice to the next."""
    spacing: tuple[float, float]
    """Between rows, between columns."""
    shape: tuple[int, int, int]

    def points(self) -> np.ndarray:
        """(slice, H, W, 3) mm of every pixel."""
        slices, height, width = self.shape
        i, j = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
        in_plane = self.row * self.spacing[0] * i + self.column * self.spacing[1] * j
        return self.origin + np.arange(slices)[:, None, None, None] * self.step + in_plane

    def pixel(self, point: np.ndarray) -> tuple[int, float, float]:
        """Nearest slice, and fractional row and column in it."""
        normal = np.cross(self.column, self.row)
        index = int(np.clip(np.rint((point - self.origin) @ normal / (self.step @ normal)), 0, self.shape[0] - 1))
        offset = point - self.origin - index * self.step
        return index, float(offset @ self.row / self.spacing[0]), float(offset @ self.column / self.spacing[1])


def upright_grid(
    plane: str,
    shape: tuple[int, int, int] = (8, 40, 36),
    spacing: tuple[float, float] = (1.0, 1.0),
    step_mm: float = 4.5,
    centre: Sequence[float] = (0.0, 0.0, 0.0),
    turn_deg: Sequence[float] = (0.0, 0.0, 0.0),
) -> Grid:
    """A grid of a body plane around a centre, turned about the x, y and z axes."""
    turn = rotation(turn_deg)
    column, row, step = (turn @ direction for direction in UPRIGHT[plane])
    step = step * step_mm
    half = (np.array(shape) - 1) / 2
    corner = np.asarray(centre) - half[0] * step - half[1] * spacing[0] * row - half[2] * spacing[1] * column
    return Grid(corner, column, row, step, spacing, shape)


def rotation(turn_deg: Sequence[float]) -> np.ndarray:
    """(3, 3) rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(turn_deg)):
        a, b = [(1, 2), (2, 0), (0, 1)][axis]
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[b, a], one[a, b] = np.sin(angle), -np.sin(angle)
        matrix = one @ matrix
    return matrix


def make_dataset(pixels: np.ndarray, syntax: str = "explicit", **tags: Any) -> Dataset:
    """A single-frame image with the tags of the competition's files; `tags` sets, or with None removes, others.

    Bits and sign follow the array's type; bits_stored = 12 says so (BitsStored, HighBit) without changing a value.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = SYNTAXES["explicit" if syntax == "rle" else syntax]
    dataset.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{tags.get('InstanceNumber') or 1}"
    bits = pixels.dtype.itemsize * 8
    stored = tags.pop("bits_stored", bits)
    defaults: dict[str, Any] = {
        "PatientID": "1",
        "InstanceNumber": 1,
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "PixelSpacing": [1, 1],
        "BitsAllocated": bits,
        "BitsStored": stored,
        "HighBit": stored - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    for keyword, value in {**defaults, **tags}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    order = ">" if syntax == "big" else "<"
    dataset.PixelData = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(order)).tobytes()
    if len(dataset.PixelData) % 2:
        dataset.PixelData += b"\0"
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    if syntax == "rle":
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    return dataset


def write_file(path: Path, pixels: np.ndarray, syntax: str = "explicit", **tags: Any) -> Path:
    """Write one image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_dataset(pixels, syntax, **tags).save_as(path, enforce_file_format=True)
    return path


def place_tags(grid: Grid, index: int, digits: int = 9) -> dict[str, Any]:
    """The geometry tags of one slice of a grid."""
    return {
        "ImagePositionPatient": [_text(value, digits) for value in grid.origin + index * grid.step],
        "ImageOrientationPatient": [_text(value, digits) for value in (*grid.column, *grid.row)],
        "PixelSpacing": [_text(value, digits) for value in grid.spacing],
    }


def _text(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"[:16]  # 16 characters is what a decimal string may have


def write_series(
    folder: Path,
    volume: np.ndarray,
    grid: Grid,
    *,
    syntax: str = "explicit",
    numbers: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    **tags: Any,
) -> list[Path]:
    """Write the slices of a (slice, H, W) volume; number n is written as n.dcm unless names are given."""
    numbers = range(1, len(volume) + 1) if numbers is None else numbers
    names = [f"{number}.dcm" for number in numbers] if names is None else names
    paths = []
    for index, (number, name) in enumerate(zip(numbers, names, strict=True)):
        slice_tags = {"InstanceNumber": number, **place_tags(grid, index), **tags}
        paths.append(write_file(folder / name, volume[index], syntax, **slice_tags))
    return paths


def texture(shape: tuple[int, ...], seed: int = 0, top: int = 4000, dtype: Any = np.uint16) -> np.ndarray:
    """Noise on a ramp over the last two axes: no symmetry, no flat area, nothing repeated."""
    random = np.random.default_rng(seed)
    ramp = np.add.outer(np.linspace(0, 0.4, shape[-2]), np.linspace(0, 0.3, shape[-1]))
    return ((ramp + 0.3 * random.random(shape)) * top).astype(dtype)


def make_multiframe(volume: np.ndarray, grid: Grid, **tags: Any) -> Dataset:
    """An enhanced multi-frame image of a (frame, H, W) volume: orientation and spacing shared, positions by frame."""
    plain = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
    dataset = make_dataset(volume[0], **{**plain, **tags})
    dataset.NumberOfFrames = len(volume)
    dataset.PixelData = np.ascontiguousarray(volume).tobytes()
    places = [place_tags(grid, index) for index in range(len(volume))]
    dataset.PerFrameFunctionalGroupsSequence = [
        _group(PlanePositionSequence={"ImagePositionPatient": place["ImagePositionPatient"]}) for place in places
    ]
    dataset.SharedFunctionalGroupsSequence = [
        _group(
            PixelMeasuresSequence={"PixelSpacing": places[0]["PixelSpacing"]},
            PlaneOrientationSequence={"ImageOrientationPatient": places[0]["ImageOrientationPatient"]},
        )
    ]
    return dataset


def _group(**sequences: dict[str, Any]) -> Dataset:
    """A functional group: sequences of one item each."""
    group = Dataset()
    for keyword, tags in sequences.items():
        item = Dataset()
        for name, value in tags.items():
            setattr(item, name, value)
        setattr(group, keyword, [item])
    return group
