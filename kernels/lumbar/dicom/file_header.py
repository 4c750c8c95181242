"""The header of one file, whatever is wrong with it: for series without a table, and for checks of a data set.

The same scan, defaults and checks as for the images that the kernel reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .header import UNDEFINED_LENGTH, WANTED, Header, Scan, numbers, parse_any, raw_values, scan, words
from .multiframe import frame_headers
from .pixels import has_pixels, read_dataset, read_file

MODALITY = 0x00080060
SERIES_DESCRIPTION = 0x0008103E
SCANNING_SEQUENCE = 0x00180020
SLICE_THICKNESS = 0x00180050
REPETITION_TIME = 0x00180080
INVERSION_TIME = 0x00180082
PROTOCOL_NAME = 0x00181030
DESCRIBING = WANTED | {
    MODALITY, SERIES_DESCRIPTION, SCANNING_SEQUENCE, SLICE_THICKNESS, REPETITION_TIME, INVERSION_TIME, PROTOCOL_NAME,
}  # fmt: skip
# Headers of plain files end within so many bytes: their pixels need not be read.
HEAD_BYTES = 1 << 14


class UnreadableHeader(Exception):
    """A file of which no header can be read; the message says why."""


@dataclass(frozen=True)
class FileHeader:
    """What a file says of itself."""

    frames: tuple[Header, ...]
    """One a frame: geometry and contrast.  Rows and columns are 0 where it holds no image."""
    values: Mapping[int, bytes]
    syntax: str
    """Transfer syntax UID."""
    has_pixels: bool
    missing_bytes: int = 0
    """How many bytes of its pixels a file is short of, as far as the header shows: uncompressed pixels alone."""

    def text(self, tag: int) -> tuple[str, ...]:
        """The values of a text element, in capitals; empty where missing."""
        return words(self.values.get(tag))

    def number(self, tag: int) -> float | None:
        """A decimal element; None where it is missing or not one finite number."""
        found = numbers(self.values.get(tag), 1)
        return found[0] if found else None


def read_file_header(path: Path) -> FileHeader:
    """Read a file's header.  Raises UnreadableHeader, and nothing else."""
    try:
        buffer, size = read_file(path, HEAD_BYTES)
        found = scan(buffer.data[: min(size, HEAD_BYTES)], DESCRIBING)
        if found is None and size > HEAD_BYTES:
            buffer, size = read_file(path)
            found = scan(buffer.data[:size], DESCRIBING)
        if found is not None:
            header = parse_any(found.values)
            return FileHeader((header,), found.values, found.syntax.decode(), True, _missing_bytes(found, header, size))
        dataset = read_dataset(buffer, size)
        values, order = raw_values(dataset, DESCRIBING)
        header = parse_any(values, order)
        frames = tuple(frame_headers(dataset, header) or [header])
        return FileHeader(frames, values, str(dataset.file_meta.TransferSyntaxUID), has_pixels(dataset))
    except Exception as error:  # pydicom raises nearly anything on damaged files
        raise UnreadableHeader(f"{type(error).__name__}: {error}") from error


def _missing_bytes(found: Scan, header: Header, size: int) -> int:
    """Of uncompressed pixels; 0 where all are there, or their length is not known."""
    if found.pixel_length == UNDEFINED_LENGTH:
        return 0
    needed = header.rows * header.columns * header.samples * header.frames * header.bits_allocated // 8
    return max(0, needed - min(found.pixel_length, size - found.pixel_offset))
