"""Whether the fast path reads a file as pydicom would: made once per encoding and series.

The header and the position of the pixels are pydicom's own.  The pixels themselves are compared where a systematic
error would show: native ones are the bytes at that position, of a single image; RLE planes hold as many bytes as the
header says, and the first ones are unpacked here, in plain Python.  A whole second decoding by pydicom would cost as
much as the fast path of 20 files, and find no more: a file with damaged pixels decodes to something in any reader.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag

from .header import PIXEL_DATA, RLE_UID, Header, Scan, parse, raw_values
from .pixels import rle_segments, unpack_planes

COMPARED_BYTES = 256
# In front of the pixels' value: the tag and its length, explicit ones with their value representation.
ELEMENT_HEADS = (8, 12)


def agrees(buffer: np.ndarray, size: int, scan: Scan, header: Header, words: np.ndarray) -> bool:
    """Whether scan, header and (rows, columns) words of a file are confirmed.  Raises what pydicom raises."""
    file = io.BytesIO(buffer.data[:size])
    dataset = read_partial(file, stop_when=_is_pixel_data)
    if parse(*raw_values(dataset)) != header or scan.pixel_offset - file.tell() not in ELEMENT_HEADS:
        return False
    if scan.syntax != RLE_UID:
        plain = np.frombuffer(buffer, "<u2", words.size, scan.pixel_offset)
        return scan.pixel_length < 2 * words.nbytes and np.array_equal(plain, words.ravel())
    segments = rle_segments(buffer.data[:size], scan)
    if segments is None or unpack_planes(buffer, size, segments, header.rows + 2, header.columns) is not None:
        return False
    return _planes_start_alike(buffer.data, segments, words)


def _is_pixel_data(tag: BaseTag, _representation: str | None, _length: int) -> bool:
    return tag == PIXEL_DATA


def _planes_start_alike(data: memoryview, segments: Sequence[tuple[int, int]], words: np.ndarray) -> bool:
    """Whether the first bytes of the high and of the low plane are those of the words."""
    planes = words.reshape(-1).astype("<u2").view(np.uint8).reshape(-1, 2)  # low byte, high byte
    for byte, (start, length) in zip((1, 0), segments, strict=True):
        unpacked = _unpack_bits(bytes(data[start : start + length]), COMPARED_BYTES)
        if planes[:COMPARED_BYTES, byte].tobytes() != unpacked[: len(planes)]:
            return False
    return True


def _unpack_bits(packed: bytes, count: int) -> bytes:
    """The first `count` bytes of a PackBits stream (PS3.5 G.3.2), or all where these are fewer."""
    unpacked, at = bytearray(), 0
    while len(unpacked) < count and at < len(packed):
        code = packed[at]
        if code < 128:  # so many literal bytes, and one
            unpacked += packed[at + 1 : at + 2 + code]
            at += 2 + code
        elif code > 128:  # one byte, repeated
            unpacked += packed[at + 1 : at + 2] * (257 - code)
            at += 2
        else:
            at += 1
    return bytes(unpacked[:count])
