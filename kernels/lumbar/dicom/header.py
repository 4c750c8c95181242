"""The DICOM header values used here, by a fast scan of the file's bytes or by pydicom.

The scan covers the competition's files (little endian, no sequences) and returns None for all others, which pydicom
reads, nine times slower.  Both give raw value bytes for one decoder.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

TRANSFER_SYNTAX = 0x00020010
IMAGE_TYPE = 0x00080008
ECHO_TIME = 0x00180081
ACQUISITION_NUMBER = 0x00200012
INSTANCE_NUMBER = 0x00200013
POSITION = 0x00200032
ORIENTATION = 0x00200037
SLICE_LOCATION = 0x00201041
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
LARGEST_VALUE = 0x00280107
LARGEST_IN_SERIES = 0x00280109
INTERCEPT = 0x00281052
SLOPE = 0x00281053
PIXEL_DATA = 0x7FE00010
FUNCTIONAL_GROUPS = (0x52009229, 0x52009230)
# Bit position of an overlay, which may lie beside the stored bits of the pixels.
OVERLAYS = tuple(0x60000102 + (group << 17) for group in range(16))
COMMON = (
    IMAGE_TYPE, ECHO_TIME, ACQUISITION_NUMBER, ORIENTATION, SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS, SPACING,
    BITS_ALLOCATED, BITS_STORED, HIGH_BIT, SIGNED, INTERCEPT, SLOPE,
)  # fmt: skip
WANTED = frozenset(
    (TRANSFER_SYNTAX, INSTANCE_NUMBER, POSITION, SLICE_LOCATION, LARGEST_VALUE, LARGEST_IN_SERIES, *OVERLAYS, *COMMON)
)
# Without these pydicom refuses an image; each has one plain default.
REQUIRED = (SAMPLES, PHOTOMETRIC, BITS_ALLOCATED, BITS_STORED, SIGNED)

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
class Contrast:
    """What tells images of one place apart; None or empty where missing or invalid."""

    echo_ms: float | None = None
    image_type: tuple[str, ...] = ()
    acquisition: int | None = None


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
    contrast: Contrast
    location: bytes | None = None
    """The slice location as it is stored: only series without positions need it."""
    largest_value: int | None = None
    """The largest stored value as the header claims it; None where an overlay may use the bits above."""

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


def scan(data: memoryview, wanted: frozenset[int] = WANTED) -> Scan | None:
    """Scan the top level of a DICOM file for some elements.  None for anything unusual; never raises."""
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
        if tag in wanted:
            values[tag] = bytes(data[start : start + length])
        offset, previous = start + length, tag
    return None


def raw_values(dataset: Dataset, wanted: Iterable[int] = WANTED) -> tuple[dict[int, bytes], Literal["little", "big"]]:
    """The same raw values from a pydicom dataset, and their byte order."""
    values: dict[int, bytes] = {}
    order: Literal["little", "big"] = "little"
    for tag in wanted:
        element = dataset.get_item(tag)
        if isinstance(element, RawDataElement) and element.value is not None:
            values[tag] = element.value
            order = "little" if element.is_little_endian else "big"
    return values, order


def parse(values: Mapping[int, bytes], order: Literal["little", "big"] = "little") -> Header | None:
    """Decode raw values; None where the file has no image (no rows and columns)."""
    header = parse_any(values, order)
    return header if header.rows and header.columns else None


def parse_any(values: Mapping[int, bytes], order: Literal["little", "big"] = "little") -> Header:
    """As parse, of a file with or without an image."""
    common = _parse_common(tuple(map(values.get, COMMON)), order)
    instance = numbers(values.get(INSTANCE_NUMBER), 1)
    largest = values.get(LARGEST_VALUE) or values.get(LARGEST_IN_SERIES)
    header = object.__new__(Header)  # dataclasses.replace takes as long as all of the rest
    header.__dict__.update(
        common.__dict__,
        instance_number=int(instance[0]) if instance else None,
        position_mm=checked_position(numbers(values.get(POSITION), 3)),
        location=values.get(SLICE_LOCATION),
        largest_value=int.from_bytes(largest[:2], order) if largest and not any(map(values.get, OVERLAYS)) else None,
    )
    return header


@lru_cache(maxsize=64)
def _parse_common(texts: tuple[bytes | None, ...], order: Literal["little", "big"]) -> Header:
    """All but what differs from file to file, from the values of COMMON, which the files of a stack repeat."""
    values = dict(zip(COMMON, texts, strict=True))

    def short(tag: int, default: int) -> int:
        value = values[tag] or b""
        return int.from_bytes(value[:2], order) if len(value) >= 2 else default

    rows, columns = short(ROWS, 0), short(COLUMNS, 0)
    allocated = short(BITS_ALLOCATED, 16)
    stored = short(BITS_STORED, allocated)
    if not 1 <= stored <= allocated:
        stored = allocated
    high_bit = short(HIGH_BIT, stored - 1)
    if not stored - 1 <= high_bit < allocated:
        high_bit = stored - 1
    frames = numbers(values[FRAMES], 1)
    slope, intercept, rescale_usable = checked_rescale(values[SLOPE], values[INTERCEPT])
    photometric = values[PHOTOMETRIC] or b"MONOCHROME2"
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
        orientation=checked_orientation(numbers(values[ORIENTATION], 6)),
        spacing_mm=checked_spacing(numbers(values[SPACING], 2), max(rows, columns)),
        slope=slope,
        intercept=intercept,
        rescale_usable=rescale_usable,
        contrast=contrast_of(numbers(values[ECHO_TIME], 1), values[IMAGE_TYPE], numbers(values[ACQUISITION_NUMBER], 1)),
    )


def contrast_of(
    echo_ms: tuple[float, ...] | None, image_type: bytes | None, acquisition: tuple[float, ...] | None
) -> Contrast:
    """A contrast of decoded numbers and raw text; an echo time of 0 or less is none."""
    return Contrast(
        echo_ms=echo_ms[0] if echo_ms and echo_ms[0] > 0 else None,
        image_type=words(image_type),
        acquisition=int(acquisition[0]) if acquisition else None,
    )


def words(text: bytes | None) -> tuple[str, ...]:
    """The values of a text, in capitals."""
    decoded = (text or b"").decode("latin-1").upper().strip(" \0")
    return tuple(word.strip() for word in decoded.split("\\")) if decoded else ()


def checked_rescale(slope: bytes | None, intercept: bytes | None) -> tuple[float, float, bool]:
    """Slope and intercept, 1 and 0 where missing; (1, 0, False) where one of them is no usable number."""

    def number(text: bytes | None, missing: float) -> float:
        return (numbers(text, 1) or (math.nan if (text or b"").strip(b"\0 ") else missing,))[0]

    found = number(slope, 1.0), number(intercept, 0.0)
    usable = 1 / LARGEST_RESCALE < abs(found[0]) < LARGEST_RESCALE and abs(found[1]) < LARGEST_RESCALE
    return (*found, True) if usable else (1.0, 0.0, False)


def numbers(text: bytes | None, count: int) -> tuple[float, ...] | None:
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
