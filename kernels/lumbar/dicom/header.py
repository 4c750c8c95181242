"""The DICOM header values used here, by a fast scan of the file's bytes or by pydicom.

The scan covers the competition's files (little endian, no sequences) and returns None for all others, which pydicom
reads, nine times slower.  Both give raw value bytes for one decoder.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

TRANSFER_SYNTAX = 0x00020010
INSTANCE_NUMBER = 0x00200013
POSITION = 0x00200032
ORIENTATION = 0x00200037
SAMPLES = 0x00280002
PHOTOMETRIC = 0x00280004
FRAMES = 0x00280008
ROWS = 0x00280010
COLUMNS = 0x00280011
SPACING = 0x00280030
BITS_ALLOCATED = 0x00280100
BITS_STORED = 0x00280101
HIGH_BIT = 0x00280102
SIGNED = 0x00280103
INTERCEPT = 0x00281052
SLOPE = 0x00281053
PIXEL_DATA = 0x7FE00010
FUNCTIONAL_GROUPS = (0x52009229, 0x52009230)
COMMON = (
    ORIENTATION, SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS, SPACING, BITS_ALLOCATED, BITS_STORED, HIGH_BIT, SIGNED,
    INTERCEPT, SLOPE,
)  # fmt: skip
WANTED = frozenset((TRANSFER_SYNTAX, INSTANCE_NUMBER, POSITION, *COMMON))

IMPLICIT_UID, EXPLICIT_UID, RLE_UID = (
    str(uid).encode() for uid in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless)
)
SCANNED_SYNTAXES = (IMPLICIT_UID, EXPLICIT_UID, RLE_UID)
PREAMBLE = 128
META_GROUP = 2
UNDEFINED_LENGTH = 0xFFFFFFFF
EXPLICIT = struct.Struct("<HH2sH")
LENGTH = struct.Struct("<I")
# Value representations whose explicit form has a 32-bit length (PS3.5 7.1.2).
LONG_FORM = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))

# Plausible ranges of scanners and bodies; values outside are invalid.
SPACING_MM = (0.05, 10.0)
FARTHEST_MM = 5000.0
LARGEST_RESCALE = 1e9


@dataclass(frozen=True)
class Header:
    """Values of one file; None where missing or invalid."""

    rows: int
    columns: int
    samples: int
    frames: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    instance_number: int | None
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None
    """Between rows, between columns."""
    slope: float
    intercept: float
    rescale_usable: bool
    """False where slope or intercept is present but invalid: then they are 1 and 0."""

    @property
    def encoding(self) -> tuple[object, ...]:
        """Everything that the decoding of the pixel bytes depends on."""
        bits = (self.bits_allocated, self.bits_stored, self.high_bit, self.signed)
        return (self.rows, self.columns, self.samples, self.frames, self.photometric, *bits)


@dataclass(frozen=True)
class Scan:
    """Raw values of a file and the position of its pixels."""

    values: Mapping[int, bytes]
    syntax: bytes
    pixel_offset: int
    pixel_length: int


def scan(data: memoryview) -> Scan | None:
    """Scan the top level of a DICOM file.  None for anything unusual; never raises."""
    if len(data) < PREAMBLE + 4 or data[PREAMBLE : PREAMBLE + 4] != b"DICM":
        return None
    values: dict[int, bytes] = {}
    offset, end, previous, explicit, syntax = PREAMBLE + 4, len(data), 0, True, b""
    while offset + 12 <= end:  # one loop without calls: a call per element costs as much as the rest
        group, number, representation, length = EXPLICIT.unpack_from(data, offset)
        if not syntax and group != META_GROUP:
            syntax = values.get(TRANSFER_SYNTAX, b"").rstrip(b"\0 ")
            if syntax not in SCANNED_SYNTAXES:
                return None
            explicit = syntax != IMPLICIT_UID
        tag, start = group << 16 | number, offset + 8
        if not explicit or representation in LONG_FORM:
            start = offset + 12 if explicit else start
            (length,) = LENGTH.unpack_from(data, start - 4)
        elif not representation.isalpha():
            length = UNDEFINED_LENGTH
        if tag == PIXEL_DATA:
            return Scan(values, syntax, start, length)
        if tag <= previous or start + length > end or tag in FUNCTIONAL_GROUPS:
            return None  # out of order or too long: misread or damaged; an undefined length ends here too
        if tag in WANTED:
            values[tag] = bytes(data[start : start + length])
        offset, previous = start + length, tag
    return None


def raw_values(dataset: Dataset) -> tuple[dict[int, bytes], Literal["little", "big"]]:
    """The same raw values from a pydicom dataset, and their byte order."""
    values: dict[int, bytes] = {}
    order: Literal["little", "big"] = "little"
    for tag in WANTED:
        element = dataset.get_item(tag)
        if isinstance(element, RawDataElement) and element.value is not None:
            values[tag] = element.value
            order = "little" if element.is_little_endian else "big"
    return values, order


def parse(values: Mapping[int, bytes], order: Literal["little", "big"] = "little") -> Header | None:
    """Decode raw values; None where the file has no image (no rows and columns)."""
    common = _parse_common(tuple(values.get(tag) for tag in COMMON), order)
    if common is None:
        return None
    instance = _numbers(values.get(INSTANCE_NUMBER), 1)
    position = checked_position(_numbers(values.get(POSITION), 3))
    return replace(common, instance_number=int(instance[0]) if instance else None, position_mm=position)


@lru_cache(maxsize=64)
def _parse_common(texts: tuple[bytes | None, ...], order: Literal["little", "big"]) -> Header | None:
    """All but number and position, from the values of COMMON, which the files of a stack repeat."""
    values = dict(zip(COMMON, texts, strict=True))

    def short(tag: int, default: int) -> int:
        value = values[tag] or b""
        return int.from_bytes(value[:2], order) if len(value) >= 2 else default

    def scale(tag: int, missing: float, invalid: float) -> float:
        text = values[tag] or b""
        return (_numbers(text, 1) or (invalid if text.strip(b"\0 ") else missing,))[0]

    rows, columns = short(ROWS, 0), short(COLUMNS, 0)
    if rows == 0 or columns == 0:
        return None
    allocated = short(BITS_ALLOCATED, 16)
    stored = short(BITS_STORED, allocated)
    if not 1 <= stored <= allocated:
        stored = allocated
    high_bit = short(HIGH_BIT, stored - 1)
    if not stored - 1 <= high_bit < allocated:
        high_bit = stored - 1
    frames = _numbers(values[FRAMES], 1)
    slope, intercept = scale(SLOPE, missing=1.0, invalid=0.0), scale(INTERCEPT, missing=0.0, invalid=math.nan)
    rescale_usable = 1 / LARGEST_RESCALE < abs(slope) < LARGEST_RESCALE and abs(intercept) < LARGEST_RESCALE
    photometric = values[PHOTOMETRIC]
    if photometric is None:
        photometric = b"MONOCHROME2"
    return Header(
        rows=rows,
        columns=columns,
        samples=short(SAMPLES, 1),
        frames=max(1, int(frames[0])) if frames else 1,
        photometric=photometric.decode("ascii", "replace").strip(" \0").upper(),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high_bit,
        signed=short(SIGNED, 0) == 1,
        instance_number=None,
        position_mm=None,
        orientation=checked_orientation(_numbers(values[ORIENTATION], 6)),
        spacing_mm=checked_spacing(_numbers(values[SPACING], 2), max(rows, columns)),
        slope=slope if rescale_usable else 1.0,
        intercept=intercept if rescale_usable else 0.0,
        rescale_usable=rescale_usable,
    )


def _numbers(text: bytes | None, count: int) -> tuple[float, ...] | None:
    """Decimal or integer strings, separated by backslashes; None unless exactly `count` finite numbers."""
    if text is None:
        return None
    try:
        numbers = tuple(map(float, text.strip(b"\0 ").split(b"\\")))
    except ValueError:
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def checked_position(position: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """The position; None where it is not plausible."""
    usable = position is not None and len(position) == 3 and all(abs(value) <= FARTHEST_MM for value in position)
    return position if usable else None


def checked_orientation(orientation: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Six direction cosines, orthonormalised; None where they are far from orthonormal."""
    if orientation is None or len(orientation) != 6 or not all(map(math.isfinite, orientation)):
        return None
    x, y = orientation[:3], orientation[3:]
    length_x, length_y, dot = math.hypot(*x), math.hypot(*y), sum(map(operator.mul, x, y))
    if abs(length_x - 1) > 0.1 or abs(length_y - 1) > 0.1 or abs(dot) > 0.05:
        return None
    y_square = [b - a * dot / length_x**2 for a, b in zip(x, y, strict=True)]
    length_y = math.hypot(*y_square)
    return (*(value / length_x for value in x), *(value / length_y for value in y_square))


def checked_spacing(spacing: tuple[float, ...] | None, longest_px: int) -> tuple[float, ...] | None:
    """The pixel spacing; None where it is not plausible."""
    if spacing is None or len(spacing) != 2 or not all(SPACING_MM[0] <= value <= SPACING_MM[1] for value in spacing):
        return None
    return spacing if max(spacing) * longest_px <= FARTHEST_MM else None
