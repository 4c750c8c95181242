"""Changes of DICOM headers that know elements, lengths, representations and what values should be."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from kernels.lumbar.dicom import header as tags
from tests.fuzz.bytes_of import EDGES, Random, pick

PREFIX = 132
UNDEFINED = 0xFFFFFFFF
REPRESENTATIONS = (
    b"OB",
    b"OW",
    b"SQ",
    b"UN",
    b"US",
    b"DS",
    b"IS",
    b"CS",
    b"UI",
    b"FD",
    b"AT",
    b"LO",
    b"UT",
    b"??",
    b"\0\0",
)
STRAY_TAGS = (
    0x00080005,
    0x00080008,
    0x00185100,
    0x60003000,
    0x7FE00008,
    0x7FE00010,
    0xFFFEE000,
    0xFFFEE00D,
    0xFFFEE0DD,
)
SHORTS = (0, 1, 2, 3, 7, 8, 12, 15, 16, 17, 24, 32, 64, 255, 256, 4096, 32767, 32768, 65535)
NUMBERS = (
    "0", "-0", "1", "-1", "0.5", "3.0", "10", "4999", "5001", "1e5", "1e9", "1e20", "1e308", "1e400", "1e-9", "1e-320",
    "-1e12", "nan", "NaN", "inf", "-inf", "", " ", "abc", "1_0", "0x10", "1,5", "1.2.3", "9" * 400, "\0",
    "\u0661", "²",
)  # fmt: skip
WORDS = (
    "MONOCHROME1",
    "MONOCHROME2",
    "RGB",
    "YBR_FULL_422",
    "PALETTE COLOR",
    "monochrome2",
    "MONOCHROME",
    "",
    "\udcff",
    "X" * 999,
)
SYNTAXES = (
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.201", "1.2.3", "", "1" * 64, "\0",
)  # fmt: skip
COUNTS = {tags.POSITION: 3, tags.ORIENTATION: 6, tags.SPACING: 2}
DEPTHS = (1, 3, 30, 300, 3000)


@dataclass(frozen=True)
class Element:
    """Where an element of the top level lies in a file."""

    tag: int
    start: int
    value: int
    end: int
    explicit: bool
    width: int
    """Bytes of its length field, which ends where the value starts."""


def elements(data: bytes) -> list[Element]:
    """The little-endian elements after the preamble, as far as they can be followed."""
    found: list[Element] = []
    at, explicit = PREFIX, True
    while at + 12 <= len(data):
        group, number, representation, length = struct.unpack_from("<HH2sH", data, at)
        if group != 2:
            explicit = representation.isalpha() and representation.isupper()
        long = not explicit or representation in tags.LONG_FORM
        value = at + (12 if explicit and long else 8)
        if long:
            length = struct.unpack_from("<I", data, value - 4)[0]
        end = len(data) if length == UNDEFINED else value + length
        if end > len(data):
            break
        found.append(Element(group << 16 | number, at, value, end, explicit, 4 if long else 2))
        at = end
    return found


def element(tag: int, representation: bytes, value: bytes, explicit: bool = True) -> bytes:
    """The bytes of an element, its value made even."""
    value += b"\0" * (len(value) % 2)
    name = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if not explicit:
        return name + struct.pack("<I", len(value)) + value
    if representation in tags.LONG_FORM:
        return name + representation + b"\0\0" + struct.pack("<I", len(value)) + value
    return name + representation + struct.pack("<H", len(value) & 0xFFFF) + value[:0xFFFF]


def absurd_value(tag: int, random: Random) -> tuple[bytes, bytes]:
    """A representation and a value that no scanner writes, or nearly none."""
    if tag in (
        tags.ROWS,
        tags.COLUMNS,
        tags.SAMPLES,
        tags.BITS_ALLOCATED,
        tags.BITS_STORED,
        tags.HIGH_BIT,
        tags.SIGNED,
    ):
        return b"US", struct.pack("<H", pick(SHORTS, random))[: pick((2, 2, 2, 1, 0), random)]
    if tag == tags.PHOTOMETRIC:
        return b"CS", _text(pick(WORDS, random))
    if tag == tags.TRANSFER_SYNTAX:
        return b"UI", _text(pick(SYNTAXES, random))
    count = COUNTS.get(tag, 1) if random.random() < 0.8 else int(random.integers(0, 9))
    value = "\\".join(pick(NUMBERS, random) if random.random() < 0.7 else "1" for _ in range(count))
    return b"DS", _text(value)


def _text(value: object) -> bytes:
    return str(value).encode("utf-8", "surrogateescape")


def _one(data: bytes, random: Random, wanted_only: bool = False) -> Element | None:
    found = [one for one in elements(data) if not wanted_only or one.tag in tags.WANTED]
    return pick(found, random) if found else None


def set_absurd(data: bytes, random: Random) -> bytes:
    """A header value that no scanner writes."""
    one = _one(data, random, wanted_only=True)
    if one is None:
        return data
    return data[: one.start] + element(one.tag, *absurd_value(one.tag, random), one.explicit) + data[one.end :]


def set_pixel_format(data: bytes, random: Random) -> bytes:
    """Other bits, sign or samples than the pixels have."""
    for tag in (tags.BITS_ALLOCATED, tags.BITS_STORED, tags.HIGH_BIT, tags.SIGNED, tags.SAMPLES):
        for one in elements(data):
            if one.tag == tag and random.random() < 0.5:
                value = struct.pack("<H", pick((0, 1, 2, 3, 8, 11, 12, 15, 16, 32, 64), random))
                data = data[: one.start] + element(tag, b"US", value, one.explicit) + data[one.end :]
                break
    return data


def insert_wanted(data: bytes, random: Random) -> bytes:
    """A header value that was not there, or is there twice."""
    one = _one(data, random)
    tag = pick(sorted(tags.WANTED), random)
    if one is None:
        return data
    return data[: one.start] + element(tag, *absurd_value(tag, random), one.explicit) + data[one.start :]


def insert_frames(data: bytes, random: Random) -> bytes:
    """A number of frames, in its place."""
    value = pick((b"0", b"1", b"2", b"5", b"-3", b"1000", b"1000000000", b"1e9", b"2.5", b"x"), random)
    for one in elements(data):
        if one.tag > tags.FRAMES:
            return data[: one.start] + element(tags.FRAMES, b"IS", value, one.explicit) + data[one.start :]
    return data


def change_length(data: bytes, random: Random) -> bytes:
    """A length that is not the value's."""
    one = _one(data, random)
    if one is None:
        return data
    length = int.from_bytes(data[one.value - one.width : one.value], "little")
    lie = pick(EDGES, random) if random.random() < 0.5 else length + int(random.integers(-4, 5))
    field = (lie & ((1 << 8 * one.width) - 1)).to_bytes(one.width, "little")
    return data[: one.value - one.width] + field + data[one.value :]


def change_tag(data: bytes, random: Random) -> bytes:
    """An element under another tag."""
    one = _one(data, random)
    if one is None:
        return data
    tag = pick((*sorted(tags.WANTED), *STRAY_TAGS, *tags.FUNCTIONAL_GROUPS, int(random.integers(1 << 32))), random)
    return data[: one.start] + struct.pack("<HH", tag >> 16, tag & 0xFFFF) + data[one.start + 4 :]


def change_representation(data: bytes, random: Random) -> bytes:
    """An element of another value representation."""
    one = _one(data, random)
    if one is None or not one.explicit:
        return data
    return data[: one.start + 4] + pick(REPRESENTATIONS, random) + data[one.start + 6 :]


def drop_element(data: bytes, random: Random) -> bytes:
    """Without an element."""
    one = _one(data, random)
    return data if one is None else data[: one.start] + data[one.end :]


def exchange_elements(data: bytes, random: Random) -> bytes:
    """Two elements in the wrong order."""
    found = elements(data)
    if len(found) < 2:
        return data
    i, j = sorted(random.choice(len(found), 2, replace=False))
    a, b = found[i], found[j]
    return data[: a.start] + data[b.start : b.end] + data[a.end : b.start] + data[a.start : a.end] + data[b.end :]


def nest(data: bytes, random: Random) -> bytes:
    """A sequence in a sequence in a sequence."""
    one = _one(data, random)
    if one is None:
        return data
    tag = pick((0x00081140, *tags.FUNCTIONAL_GROUPS, 0x00209113), random)
    depth = pick(DEPTHS, random)
    name = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + (b"SQ\0\0" if one.explicit else b"")
    item, undefined = struct.pack("<HH", 0xFFFE, 0xE000), struct.pack("<I", UNDEFINED)
    nested = (name + undefined + item + undefined) * depth
    if random.random() < 0.7:
        nested += (struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)) * depth
    return data[: one.start] + nested + data[one.start :]


CHANGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    set_absurd, set_absurd, set_absurd, set_pixel_format, insert_wanted, insert_frames, change_length, change_tag,
    change_representation, drop_element, exchange_elements, nest,
)  # fmt: skip
