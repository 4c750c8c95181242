"""Changes of the pixels of DICOM files: run lengths, fragments, sizes, and what inflates without end."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cache

from kernels.lumbar.dicom import header as tags
from tests.fuzz.bytes_of import EDGES, Random, pick
from tests.fuzz.dicom_bytes import PREFIX, UNDEFINED, Element, element, elements


def _pixels(data: bytes) -> Element | None:
    return next((one for one in elements(data) if one.tag == tags.PIXEL_DATA), None)


def change_run_lengths(data: bytes, random: Random) -> bytes:
    """Another table of segments, or other bytes behind it."""
    pixels = _pixels(data)
    if pixels is None or len(data) < pixels.value + 16 + tags.LENGTH.size:
        return data
    table = pixels.value + 16
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        at = table + 4 * pick((0, 0, 1, 2, 3, 15), random)
        number = pick(EDGES, random) if random.random() < 0.5 else int(random.integers(0, 2000))
        if at + 4 <= len(changed):
            struct.pack_into("<I", changed, at, number)
    if random.random() < 0.4:
        at = min(table + 64 + int(random.integers(0, 64)), len(changed) - 1)
        changed[at:] = random.bytes(len(changed) - at) if random.random() < 0.5 else bytes([0x81]) * (len(changed) - at)
    return bytes(changed)


def change_fragments(data: bytes, random: Random) -> bytes:
    """Pixels in other fragments: more of them, empty ones, none, without an end."""
    pixels = _pixels(data)
    if pixels is None:
        return data
    item, end = struct.pack("<HH", 0xFFFE, 0xE000), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    body = data[pixels.value + 16 : -8]
    parts = [b"", body[: len(body) // 2], body[len(body) // 2 :], random.bytes(8), body, b"\0" * 64]
    chosen = [pick(parts, random) for _ in range(int(random.integers(0, 6)))]
    fragments = b"".join(item + struct.pack("<I", len(part)) + part for part in chosen)
    opening = struct.pack("<HH", 0x7FE0, 0x10) + (b"OB\0\0" if pixels.explicit else b"") + struct.pack("<I", UNDEFINED)
    return data[: pixels.start] + opening + fragments + (end if random.random() < 0.7 else b"")


def resize_pixels(data: bytes, random: Random) -> bytes:
    """Fewer or more pixels than rows and columns say, with a length that is right."""
    pixels = _pixels(data)
    if pixels is None:
        return data
    value = data[pixels.value : pixels.end]
    value = (value * 3)[: int(random.integers(0, 3 * len(value) + 1))]
    return data[: pixels.start] + element(tags.PIXEL_DATA, b"OW", value, pixels.explicit)


def _set_short(data: bytes, tag: int, value: int) -> bytes:
    for one in elements(data):
        if one.tag == tag:
            return data[: one.start] + element(tag, b"US", struct.pack("<H", value), one.explicit) + data[one.end :]
    return data


def change_size(data: bytes, random: Random) -> bytes:
    """Another number of rows and columns, with as many pixels; in runs they take little room."""
    sides = (1, 2, 3, 31, 31, 400, 400, 4096)
    rows, columns = pick(sides, random), pick(sides, random)
    data = _set_short(_set_short(data, tags.ROWS, rows), tags.COLUMNS, columns)
    pixels = _pixels(data)
    if pixels is None:
        return data
    if tags.RLE_UID not in data[:1024]:
        value = (data[pixels.value : pixels.end] * 400)[: 2 * rows * columns]
        return data[: pixels.start] + element(tags.PIXEL_DATA, b"OW", value, pixels.explicit)
    runs = (b"\x81" + random.bytes(1)) * (rows * columns // 128 + 1)
    runs += b"\0" * (len(runs) % 2)
    body = struct.pack("<16I", 2, 64, 64 + len(runs), *[0] * 13) + runs + runs
    item, end = struct.pack("<HHI", 0xFFFE, 0xE000, 0), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    fragment = struct.pack("<HHI", 0xFFFE, 0xE000, len(body)) + body
    opening = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, UNDEFINED)
    return data[: pixels.start] + opening + item + fragment + end


@cache
def _inflating(megabytes: int) -> bytes:
    """What inflates to so many megabytes of zeros, and can stand in the middle of a deflated stream."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return (deflater.compress(bytes(1 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH)) * megabytes


def inflate(data: bytes, random: Random) -> bytes:
    """A deflated data set of zeros that is larger than its file, or far larger."""
    meta = [one for one in elements(data) if one.tag >> 16 == 2]
    syntax = next((one for one in meta if one.tag == tags.TRANSFER_SYNTAX), None)
    if syntax is None:
        return data
    deflated = element(tags.TRANSFER_SYNTAX, b"UI", b"1.2.840.10008.1.2.1.99")
    head = data[PREFIX : syntax.start] + deflated + data[syntax.end : meta[-1].end]
    length = element(0x00020000, b"UL", struct.pack("<I", len(head) - 12))
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflater.compress(data[meta[-1].end :]) + deflater.flush(zlib.Z_FULL_FLUSH)
    return data[:PREFIX] + length + head[12:] + body + _inflating(pick((*[1] * 8, 20, 1500), random)) + b"\x03\0"


CHANGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    change_run_lengths, change_fragments, resize_pixels, change_size, inflate,
)  # fmt: skip
