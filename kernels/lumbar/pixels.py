"""Stored pixel values of one file: a fast path for native and RLE little-endian 16-bit images, pydicom for all else.

Both return the words as stored, unsigned; `to_offset_binary` then drops unused bits and puts signed values in order.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
import pydicom

from .header import PREAMBLE, RLE_UID, UNDEFINED_LENGTH, Header, Scan

# Damaged files are a normal case here: they are recorded as Problems, not printed.
(getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)(0)
warnings.filterwarnings("ignore", module=r"pydicom\..*")

TIFF_TAIL = 256  # bytes kept free behind a file for a TIFF directory (118 are needed)
TIFF_SHORT, TIFF_LONG = 3, 4
TIFF_PACKBITS = 32773
ITEM_TAG, SEQUENCE_END_TAG = 0xE000FFFE, 0xE0DDFFFE
RLE_HEADER = 64


def read_file(path: Path) -> tuple[bytearray, int]:
    """The bytes of a file with TIFF_TAIL free bytes behind them, and the file's length."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        buffer = bytearray(size + TIFF_TAIL)
        view = memoryview(buffer)[:size]
        done = 0
        while done < size:
            count = file.readinto(view[done:])
            if not count:
                raise OSError(f"only {done} of {size} bytes could be read")
            done += count
    return buffer, size


def read_dataset(buffer: bytearray, size: int) -> pydicom.Dataset:
    """The file through pydicom, tolerating a missing preamble.  Raises what pydicom raises."""
    return pydicom.dcmread(io.BytesIO(memoryview(buffer)[:size]), force=True)


def decode_by_pydicom(dataset: pydicom.Dataset) -> np.ndarray:
    """The pixels through pydicom; 16 bits or fewer come as unsigned words.  Raises what pydicom raises."""
    pixels = dataset.pixel_array
    if pixels.dtype.kind == "f" or pixels.dtype.itemsize > 2:
        return pixels
    return pixels.astype(np.int16 if pixels.dtype.kind == "i" else np.uint16).view(np.uint16)


def decode_fast(buffer: bytearray, size: int, scan: Scan, header: Header) -> np.ndarray | None:
    """(rows, columns) uint16 without pydicom; None where the file is not of the plain kinds that this knows."""
    plain = header.bits_allocated == 16 and header.samples == 1 and header.frames == 1
    if not plain or not header.photometric.startswith("MONOCHROME"):
        return None
    if scan.syntax == RLE_UID:
        return _decode_rle(buffer, size, scan, header.rows, header.columns)
    length = header.rows * header.columns * 2
    if scan.pixel_length == UNDEFINED_LENGTH or scan.pixel_length < length or scan.pixel_offset + length > size:
        return None
    words = np.frombuffer(buffer, "<u2", header.rows * header.columns, scan.pixel_offset)
    return words.reshape(header.rows, header.columns)


def _decode_rle(buffer: bytearray, size: int, scan: Scan, rows: int, columns: int) -> np.ndarray | None:
    """DICOM RLE of 16 bits is two PackBits planes, high bytes first: what TIFF's PackBits strips are.

    A TIFF header in the DICOM preamble and a directory behind the file make OpenCV decode both where they lie, as the
    two strips of one image; declared as 16-bit and half as large, so that the bytes come out as they are.
    """
    segments = _rle_segments(memoryview(buffer)[:size], scan)
    if segments is None or rows * columns % 2:
        return None
    width, height = (columns // 2, rows) if columns % 2 == 0 else (columns, rows // 2)
    _write_tiff(buffer, size, width, height, segments)
    try:
        decoded = cv2.imdecode(np.frombuffer(buffer, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if decoded is None or decoded.dtype != np.uint16 or decoded.shape != (2 * height, width):
        return None
    high, low = decoded.view(np.uint8).reshape(2, rows, columns)
    return cv2.merge([low, high]).view("<u2")[..., 0]


def _rle_segments(data: memoryview, scan: Scan) -> list[tuple[int, int]] | None:
    """(offset, length) of the two segments of a single-fragment RLE image; None where there are not exactly these."""
    if scan.pixel_length != UNDEFINED_LENGTH or scan.pixel_offset + 16 > len(data):
        return None
    tag, table_length = struct.unpack_from("<II", data, scan.pixel_offset)
    fragment = scan.pixel_offset + 8 + table_length
    if tag != ITEM_TAG or fragment + 8 + RLE_HEADER > len(data):
        return None
    tag, length = struct.unpack_from("<II", data, fragment)
    start, end = fragment + 8, fragment + 8 + length
    if tag != ITEM_TAG or length < RLE_HEADER or end + 4 > len(data):
        return None
    if struct.unpack_from("<I", data, end)[0] != SEQUENCE_END_TAG:
        return None
    count, first, second = struct.unpack_from("<3I", data, start)
    if count != 2 or not RLE_HEADER <= first < second < length:
        return None
    return [(start + first, second - first), (start + second, length - second)]


def _write_tiff(buffer: bytearray, size: int, width: int, height: int, segments: list[tuple[int, int]]) -> None:
    """Frame the bytes between preamble and `size` as a TIFF of two strips, without touching them."""
    offsets_at = size + size % 2
    lengths_at, directory_at = offsets_at + 8, offsets_at + 16
    entries = (
        (256, TIFF_SHORT, 1, width),
        (257, TIFF_SHORT, 1, 2 * height),
        (258, TIFF_SHORT, 1, 16),
        (259, TIFF_SHORT, 1, TIFF_PACKBITS),
        (262, TIFF_SHORT, 1, 1),  # photometric: black is zero
        (273, TIFF_LONG, 2, offsets_at),
        (277, TIFF_SHORT, 1, 1),
        (278, TIFF_LONG, 1, height),  # rows per strip
        (279, TIFF_LONG, 2, lengths_at),
    )
    (offset_0, length_0), (offset_1, length_1) = segments
    struct.pack_into("<2s H I", buffer, 0, b"II", 42, directory_at)
    buffer[8:PREAMBLE] = bytes(PREAMBLE - 8)
    struct.pack_into("<4I", buffer, offsets_at, offset_0, offset_1, length_0, length_1)
    struct.pack_into("<H", buffer, directory_at, len(entries))
    for index, entry in enumerate(entries):
        struct.pack_into("<HHII", buffer, directory_at + 2 + 12 * index, *entry)
    struct.pack_into("<I", buffer, directory_at + 2 + 12 * len(entries), 0)


def to_offset_binary(words: np.ndarray, header: Header) -> tuple[np.ndarray, int, bool]:
    """Words without their unused bits, as uint16 that rise with the value: (array, offset to subtract, clean).

    Signed values come offset by half the range.  `clean` is False where an unsigned image has bits set outside of those
    that it claims to store (an overlay, or garbage): these are dropped.
    """
    mask = (1 << header.bits_stored) - 1
    shift = header.high_bit + 1 - header.bits_stored
    offset = 1 << (header.bits_stored - 1) if header.signed else 0
    clean = True
    if shift:
        words = words >> np.uint16(shift)
    if header.bits_stored < 16 and (header.signed or int(words.max()) > mask):
        clean = header.signed
        words = words & np.uint16(mask)
    if offset:
        words = words ^ np.uint16(offset)
    return words, offset, clean


def to_words(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Wide or floating values in 65,536 steps: (uint16 array, slope, intercept).  What is not finite becomes the least.

    Raises ValueError where nothing is finite.
    """
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    if not finite.any():
        raise ValueError("no finite pixel value")
    low, high = float(wide[finite].min()), float(wide[finite].max())
    step = (high - low) / 65535 or 1.0
    return np.rint((np.where(finite, wide, low) - low) / step).astype(np.uint16), step, low
