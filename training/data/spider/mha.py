"""MetaImage files (.mha) as sagittal volumes in patient millimetres.

Read here and not by SimpleITK: such a file is a text header and one block of bytes, plain or of zlib, and reading it
takes fewer lines than a library of 50 MB that nothing else in the kit needs.

MetaIO's TransformMatrix holds a unit vector an axis of the file, the axis that varies fastest first, in DICOM's
coordinates (LPS); Offset is the centre of the first voxel.  Files may store sagittal slices along any axis and in any
direction, so the axes are told apart by these vectors alone.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
# Names that MetaIO gives one entry.
OFFSET, DIRECTIONS = ("Offset", "Position", "Origin"), ("TransformMatrix", "Rotation", "Orientation")
LONGEST_HEADER = 1 << 14
# A slice that is turned by more than this is no sagittal one: cosine of its normal with the left-right axis.
SAGITTAL_COS = 0.7
NOT_A_ROTATION = 1e-2


class SpiderError(Exception):
    """SPIDER files that cannot be imported, in one sentence."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A sagittal stack: slices towards the patient's left, rows towards the feet, columns towards the back."""

    voxels: np.ndarray
    """(slice, row, column)"""
    origin_mm: np.ndarray
    """(3,) centre of voxel (0, 0, 0) in patient mm (LPS)."""
    steps_mm: np.ndarray
    """(3, 3): the step of a slice, of a row and of a column."""

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,) distance of slices, of rows and of columns."""
        return np.linalg.norm(self.steps_mm, axis=1)

    def to_patient(self, indices: np.ndarray) -> np.ndarray:
        """(..., 3) mm of (..., 3) slice, row, column."""
        return np.asarray(self.origin_mm + np.asarray(indices, float) @ self.steps_mm)

    def to_index(self, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) fractional slice, row, column of (..., 3) mm."""
        return np.asarray((np.asarray(points_mm) - self.origin_mm) @ np.linalg.inv(self.steps_mm))

    def lies_as(self, other: Volume, tolerance_mm: float) -> bool:
        """Whether all voxels lie where those of another volume of the same shape do."""
        corners = np.array([np.zeros(3), np.array(self.voxels.shape) - 1])
        apart_mm = np.linalg.norm(self.to_patient(corners) - other.to_patient(corners), axis=1)
        return self.voxels.shape == other.voxels.shape and bool(apart_mm.max() <= tolerance_mm)


def read_volume(path: Path) -> Volume:
    """Read a file.  Raises SpiderError for one that is missing, damaged, or not a sagittal volume."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpiderError(f"{path} cannot be read ({error.strerror}): download it again") from error
    try:
        header, start = _header(content)
        return _sagittal(*_parts(header, content[start:]))
    except (ValueError, KeyError, zlib.error) as error:
        reason = f"its header lacks {error}" if isinstance(error, KeyError) else str(error)
        raise SpiderError(f"{path} is no sagittal volume that can be imported ({reason}): download it again") from error


def _header(content: bytes) -> tuple[dict[str, str], int]:
    """The header's entries, and where the voxels begin."""
    entries: dict[str, str] = {}
    place = 0
    while "ElementDataFile" not in entries:
        end = content.find(b"\n", place, LONGEST_HEADER)
        if end < 0:
            raise ValueError("it has no MetaImage header")
        name, _, value = content[place:end].decode("latin-1").partition("=")
        entries[name.strip()] = value.strip()
        place = end + 1
    return entries, place


def _parts(header: dict[str, str], content: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels by the file's axes, the fastest first; origin (3,); and the axes' steps (3, 3), all in mm."""
    if header["ElementDataFile"] != "LOCAL":
        raise ValueError("its voxels are in another file")
    if header["NDims"] != "3" or header.get("ElementNumberOfChannels", "1") != "1":
        raise ValueError("it does not hold one value a voxel in three dimensions")
    if header["ElementType"] not in TYPES:
        raise ValueError(f"its ElementType is {header['ElementType']}")
    big = "True" in (header.get("BinaryDataByteOrderMSB"), header.get("ElementByteOrderMSB"))
    kind = np.dtype(TYPES[header["ElementType"]]).newbyteorder(">" if big else "<")
    size = np.array(header["DimSize"].split(), int)
    data = zlib.decompress(content) if header.get("CompressedData") == "True" else content
    if len(size) != 3 or size.min() < 1 or len(data) != size.prod() * kind.itemsize:
        raise ValueError(f"it holds {len(data)} bytes of voxels, not those of {' × '.join(map(str, size))}")
    spacing_mm = _numbers(header, ("ElementSpacing", "ElementSize"), 3)
    directions = _numbers(header, DIRECTIONS, 9).reshape(3, 3)
    if np.abs(directions @ directions.T - np.eye(3)).max() > NOT_A_ROTATION or spacing_mm.min() <= 0:
        raise ValueError("its axes are not at right angles, or its spacing is not positive")
    voxels = np.frombuffer(data, kind).reshape(size[::-1]).transpose()
    return voxels, _numbers(header, OFFSET, 3), directions * spacing_mm[:, None]


def _numbers(header: dict[str, str], names: tuple[str, ...], count: int) -> np.ndarray:
    text = next((header[name] for name in names if name in header), None)
    if text is None:
        raise KeyError(names[0])
    numbers = np.array(text.split(), float)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"its {names[0]} is '{text}'")
    return numbers


def _sagittal(voxels: np.ndarray, origin_mm: np.ndarray, steps_mm: np.ndarray) -> Volume:
    """The volume with its axes in the order and the directions of `Volume`, by the patient's axes that they follow."""
    along = np.abs(steps_mm) / np.linalg.norm(steps_mm, axis=1, keepdims=True)  # (axis, x y z)
    across = int(along[:, 0].argmax())
    down = max((axis for axis in range(3) if axis != across), key=lambda axis: along[axis, 2])
    order = [across, down, 3 - across - down]
    if along[across, 0] < SAGITTAL_COS:
        raise ValueError("its slices are not sagittal")
    voxels, steps_mm = voxels.transpose(order), steps_mm[order]
    for axis, (component, sign) in enumerate(((0, 1), (2, -1), (1, 1))):  # to the left, to the feet, to the back
        if steps_mm[axis, component] * sign < 0:
            origin_mm = origin_mm + (voxels.shape[axis] - 1) * steps_mm[axis]
            steps_mm = np.where(np.arange(3)[:, None] == axis, -steps_mm, steps_mm)
            voxels = np.flip(voxels, axis)
    return Volume(np.ascontiguousarray(voxels), origin_mm, steps_mm)
