"""Files whose pixels are whole though something beside them is missing: the usual value, or the last delimiter."""

from __future__ import annotations

import io
import struct
from typing import Literal

import numpy as np
from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag

from .header import (
    BITS_ALLOCATED,
    BITS_STORED,
    PHOTOMETRIC,
    PIXEL_DATA,
    REQUIRED,
    SAMPLES,
    SIGNED,
    UNDEFINED_LENGTH,
    Header,
    parse_any,
)
from .pixels import ITEM_TAG, SEQUENCE_END_TAG

LAST_DELIMITER = struct.pack("<II", SEQUENCE_END_TAG, 0)


def with_usual_values(
    dataset: Dataset, values: dict[int, bytes], order: Literal["little", "big"]
) -> tuple[Header, list[str]]:
    """The header, and the elements of the pixel description that are missing or invalid: the dataset gets them.

    `values` are the dataset's raw values.  Without them pydicom refuses the pixels.
    """
    if "PixelData" not in dataset:
        return parse_any(values, order), []
    named: list[int] = []
    if not values.get(BITS_ALLOCATED):
        bits = _bits_allocated(dataset, parse_any(values, order))
        values = {**values, BITS_ALLOCATED: bits.to_bytes(2, order)}
        dataset.BitsAllocated = bits
        named.append(BITS_ALLOCATED)
    header = parse_any(values, order)
    usual: dict[int, int | str] = {
        SAMPLES: header.samples,
        PHOTOMETRIC: header.photometric,
        BITS_STORED: header.bits_stored,
        SIGNED: int(header.signed),
    }
    for tag, value in usual.items():
        raw = values.get(tag)
        if not raw or (isinstance(value, int) and int.from_bytes(raw[:2], order) != value):
            setattr(dataset, keyword_for_tag(tag), value)
            named.append(tag)
    return header, [keyword_for_tag(tag) for tag in REQUIRED if tag in named]


def _bits_allocated(dataset: Dataset, header: Header) -> int:
    """By the number of bytes, if the pixels are not compressed."""
    count = header.rows * header.columns * header.frames * header.samples
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated and count:
        return {1: 8, 4: 32}.get(len(dataset.PixelData) // count, 16)
    return 8 if header.bits_stored <= 8 else 16


def with_last_delimiter(buffer: np.ndarray, size: int) -> int:
    """Complete a file that ends behind a whole fragment of compressed pixels: its new length, in the same buffer.

    0 where it is no such file.  The buffer has a few free bytes behind the file (pixels.read_file).
    """
    data = buffer.data[:size]
    file = io.BytesIO(data)
    read_partial(file, stop_when=_is_pixel_data, force=True)
    start = file.tell() + 12  # tag, value representation, two free bytes, length
    if start > size or struct.unpack_from("<I", data, start - 4)[0] != UNDEFINED_LENGTH:
        return 0
    fragments = 0
    while start + 8 <= size:
        tag, length = struct.unpack_from("<II", data, start)
        if tag != ITEM_TAG:
            return 0
        start, fragments = start + 8 + length, fragments + 1
    if start > size or fragments < 2 or not LAST_DELIMITER.startswith(bytes(data[start:])):
        return 0  # cut inside of a fragment, or nothing but the table of offsets
    buffer[start : start + len(LAST_DELIMITER)] = np.frombuffer(LAST_DELIMITER, np.uint8)
    return start + len(LAST_DELIMITER)


def _is_pixel_data(tag: BaseTag, _representation: str | None, _length: int) -> bool:
    return tag == PIXEL_DATA
