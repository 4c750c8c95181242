"""Stored pixel values of one file: a fast path for native and RLE little-endian 16-bit images, else pydicom.

Both return the stored words, unsigned; `to_offset_binary` then drops unused bits and converts signed values.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import stat
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pydicom
from pydicom.filereader import read_partial
from pydicom.pixels import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from .header import PREAMBLE, RLE_UID, UNDEFINED_LENGTH, Header, Scan

# Damaged files are expected: they are recorded as Problems, not printed.
(getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)(0)
warnings.filterwarnings("ignore", module=r"pydicom\..*")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

NO_FILE = "neither a file nor a link to one"
LARGEST_FILE_BYTES = 1 << 30
TIFF_TAIL = 256  # bytes kept free behind a file for a TIFF directory (118 are needed)
LARGEST_SCRATCH_WORDS = 1 << 26
TIFF_SHORT, TIFF_LONG = 3, 4
TIFF_PACKBITS = 32773
TIFF_ENTRIES = 9
TIFF_START = struct.Struct(f"<2sHI{PREAMBLE - 8}s")
TIFF_DIRECTORY = struct.Struct("<4IH" + TIFF_ENTRIES * "HHII" + "I")  # offsets and lengths of the strips in front
PACKBITS_LARGEST_RATIO = 64  # two bytes stand for 128 at most
DEFLATED_UID = str(DeflatedExplicitVRLittleEndian).encode()
# Behind the preamble and its magic word lies the length of the meta group, which names the syntax.
META_LENGTH_AT, META_BYTES = PREAMBLE + 12, 4096
LARGEST_INFLATED_RATIO, LARGEST_UNQUESTIONED_INFLATED = 64, 1 << 26
INFLATED_AT_ONCE = 1 << 20
MOST_ELEMENTS = 20_000
ITEM_TAG, SEQUENCE_END_TAG = 0xE000FFFE, 0xE0DDFFFE
RLE_HEADER = 64


class Scratch(threading.local):
    """Buffers reused by every series: page faults of fresh memory cost more than the decoding itself.

    `file` is overwritten by the next file, `words` by the next series after `clear`.
    """

    def __init__(self) -> None:
        self._file = np.empty(0, np.uint8)
        self._words = np.empty(0, np.uint16)
        self._used = 0

    def clear(self) -> None:
        """Reuse the words of the last series; the buffer of an unusually large one is freed."""
        self._used = 0
        if len(self._words) > LARGEST_SCRATCH_WORDS:
            self._words = np.empty(0, np.uint16)

    def file(self, size: int) -> np.ndarray:
        """(size,) uint8"""
        if len(self._file) < size:
            self._file = np.empty(2 * size, np.uint8)
        return self._file[:size]

    def words(self, rows: int, columns: int) -> np.ndarray:
        """(rows, columns) uint16"""
        count = rows * columns
        if self._used + count > len(self._words):
            self._words, self._used = np.empty(max(32 * count, 2 * len(self._words)), np.uint16), 0
        self._used += count
        return self._words[self._used - count : self._used].reshape(rows, columns)


scratch = Scratch()


class NotRead(Exception):
    """A path that is no file to be read; the message says why."""


def read_file(path: Path, at_most: int = LARGEST_FILE_BYTES) -> tuple[np.ndarray, int]:
    """The first bytes of a file, in scratch memory with TIFF_TAIL free bytes behind them, and the file's length.

    Raises NotRead for what is no regular file, or a huge one, and OSError.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # not blocking: opening a pipe would wait
    except OSError as error:
        if path.is_file():
            raise
        raise NotRead(NO_FILE) from error
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            raise NotRead(NO_FILE)
        if about.st_size > LARGEST_FILE_BYTES:
            raise NotRead(f"larger than {LARGEST_FILE_BYTES >> 20} MiB: no image of a study")
        wanted = min(about.st_size, at_most)
        buffer = scratch.file(wanted + TIFF_TAIL)
        view, done = buffer.data, 0
        while done < wanted:
            count = os.readv(file, [view[done:wanted]])
            if not count:
                raise OSError(f"only {done} of {about.st_size} bytes could be read")
            done += count
    finally:
        os.close(file)
    return buffer, about.st_size


def read_dataset(buffer: np.ndarray, size: int) -> pydicom.Dataset:
    """The file through pydicom, tolerating a missing preamble or file meta group.  Raises what pydicom raises."""
    _check_inflated(buffer.data[:size])
    count = itertools.count()
    # A file of zeros has an element in every eighth byte, and pydicom would parse each of them.
    dataset = read_partial(io.BytesIO(buffer.data[:size]), stop_when=lambda *_: next(count) > MOST_ELEMENTS, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = plain if little else ExplicitVRBigEndian
    return dataset


def has_pixels(dataset: pydicom.Dataset) -> bool:
    """Whether a dataset holds pixels of any kind."""
    return any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))


def _check_inflated(data: memoryview) -> None:
    """Raises ValueError for a decompression bomb: pydicom would inflate a deflated file at once."""
    if DEFLATED_UID not in bytes(data[:META_BYTES]) or len(data) < META_LENGTH_AT + 4:
        return
    start = META_LENGTH_AT + 4 + int.from_bytes(data[META_LENGTH_AT : META_LENGTH_AT + 4], "little")
    inflater, left, room = zlib.decompressobj(-zlib.MAX_WBITS), bytes(data[start:]), LARGEST_INFLATED_RATIO * len(data)
    room = max(room, LARGEST_UNQUESTIONED_INFLATED)
    while left and room > 0:
        try:
            room -= len(inflater.decompress(left, INFLATED_AT_ONCE))
        except zlib.error:
            return  # pydicom raises the error
        left = inflater.unconsumed_tail
    if room <= 0:
        raise ValueError(f"{len(data)} bytes inflate to more than can be meant")


def decode_by_pydicom(dataset: pydicom.Dataset) -> np.ndarray:
    """The pixels through pydicom; 16 bits or fewer come as unsigned words.  Raises what pydicom raises."""
    # Not by pydicom, which cuts off the bits above BitsStored even if HighBit differs; see to_offset_binary.
    pixels = pixel_array(dataset, correct_unused_bits=False)
    if pixels.dtype.kind == "f" or pixels.dtype.itemsize > 2:
        return pixels
    return pixels.astype(np.int16 if pixels.dtype.kind == "i" else np.uint16).view(np.uint16)


def decode_fast(buffer: np.ndarray, size: int, scan: Scan, header: Header) -> np.ndarray | None:
    """(rows, columns) uint16 without pydicom; None for files of other encodings."""
    plain = header.bits_allocated == 16 and header.samples == 1 and header.frames == 1
    if not plain or not header.photometric.startswith("MONOCHROME"):
        return None
    if scan.syntax == RLE_UID:
        return _decode_rle(buffer, size, scan, header.rows, header.columns)
    length = header.rows * header.columns * 2
    if scan.pixel_length == UNDEFINED_LENGTH or scan.pixel_length < length or scan.pixel_offset + length > size:
        return None
    words = scratch.words(header.rows, header.columns)
    words[:] = np.frombuffer(buffer, "<u2", words.size, scan.pixel_offset).reshape(words.shape)
    return words


def _decode_rle(buffer: np.ndarray, size: int, scan: Scan, rows: int, columns: int) -> np.ndarray | None:
    segments = rle_segments(buffer.data[:size], scan)
    if segments is None or rows * columns % 2:
        return None
    planes = unpack_planes(buffer, size, segments, rows, columns)
    if planes is None:
        return None
    high, low = planes.reshape(2, 1, -1)
    words = scratch.words(rows, columns)
    cv2.merge([low, high], dst=words.view(np.uint8).reshape(1, -1, 2))
    return words


def unpack_planes(
    buffer: np.ndarray, size: int, segments: list[tuple[int, int]], rows: int, columns: int
) -> np.ndarray | None:
    """(2, rows × columns) uint8 planes of a 16-bit RLE image, high bytes first; None where there are fewer bytes.

    By OpenCV's TIFF reader, as TIFF strips can be PackBits like DICOM's segments: a TIFF header in the DICOM preamble
    and a directory behind the file let it decode both in place, as the strips of one image; declared as 16-bit and half
    as large, so that the bytes are unchanged.
    """
    if min(length for _, length in segments) * PACKBITS_LARGEST_RATIO < rows * columns:
        return None  # incomplete: do not allocate the memory that a broken header claims
    width, height = (columns // 2, rows) if columns % 2 == 0 else (columns, rows // 2)
    _write_tiff(buffer, size, width, height, segments)
    try:
        decoded = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if decoded is None or decoded.dtype != np.uint16 or decoded.shape != (2 * height, width):
        return None
    return decoded.view(np.uint8).reshape(2, -1)


def rle_segments(data: memoryview, scan: Scan) -> list[tuple[int, int]] | None:
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


def _write_tiff(buffer: np.ndarray, size: int, width: int, height: int, segments: list[tuple[int, int]]) -> None:
    """Write a TIFF header and directory around the bytes between preamble and `size`, which stay as they are."""
    offsets_at = size + size % 2
    lengths_at, directory_at = offsets_at + 8, offsets_at + 16
    (offset_0, length_0), (offset_1, length_1) = segments
    TIFF_START.pack_into(buffer.data, 0, b"II", 42, directory_at, b"")
    # fmt: off
    TIFF_DIRECTORY.pack_into(
        buffer.data, offsets_at, offset_0, offset_1, length_0, length_1, TIFF_ENTRIES,
        256, TIFF_SHORT, 1, width,
        257, TIFF_SHORT, 1, 2 * height,
        258, TIFF_SHORT, 1, 16,  # bits a sample
        259, TIFF_SHORT, 1, TIFF_PACKBITS,
        262, TIFF_SHORT, 1, 1,  # photometric: black is zero
        273, TIFF_LONG, 2, offsets_at,
        277, TIFF_SHORT, 1, 1,  # samples a pixel
        278, TIFF_LONG, 1, height,  # rows a strip
        279, TIFF_LONG, 2, lengths_at,
        0,  # no further directory
    )
    # fmt: on


Bits = Literal["", "stray-bits", "larger-values"]


def to_offset_binary(words: np.ndarray, header: Header) -> tuple[np.ndarray, int, Bits]:
    """Words without unused bits, as uint16 in the order of the values: (array, offset to subtract, problem).

    Signed values are offset by half the range.  The problem is of an unsigned image that has bits set outside of
    BitsStored: values that the header's largest one includes are kept, all else (an overlay, garbage) is dropped.
    """
    mask = (1 << header.bits_stored) - 1
    shift = header.high_bit + 1 - header.bits_stored
    offset = 1 << (header.bits_stored - 1) if header.signed else 0
    problem: Bits = ""
    if shift:
        words = words >> np.uint16(shift)
    if header.bits_stored < 16 and (header.signed or int(words.max()) > mask):
        is_meant = not header.signed and header.largest_value is not None and words.max() <= header.largest_value
        problem = "" if header.signed else "larger-values" if is_meant else "stray-bits"
        words = words if is_meant else words & np.uint16(mask)
    if offset:
        words = words ^ np.uint16(offset)
    return words, offset, problem


def to_words(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Wide or floating values in 65,536 steps: (uint16 array, slope, intercept); non-finite values become the minimum.

    Raises ValueError where no value, or not their range, is finite.
    """
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    if not finite.any():
        raise ValueError("no finite pixel value")
    low, high = float(wide[finite].min()), float(wide[finite].max())
    step = (high - low) / 65535 or 1.0
    if not np.isfinite(step):
        raise ValueError(f"pixel values from {low} to {high}")
    return np.rint((np.where(finite, wide, low) - low) / step).astype(np.uint16), step, low
