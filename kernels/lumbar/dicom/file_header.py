"""The header of one file, whatever is wrong with it: for series without a table, and for label tables.

The same scan, defaults and checks as for the images that the kernel reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .header import WANTED, Header, numbers, parse_any, raw_values, scan, words
from .multiframe import frame_headers
from .pixels import read_dataset, read_file

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


class UnreadableHeader(Exception):
    """A file of which no header can be read; the message says why."""


@dataclass(frozen=True)
class FileHeader:
    """What a file says of itself."""

    frames: tuple[Header, ...]
    """One a frame: geometry and contrast.  Rows and columns are 0 where it holds no image."""
    values: Mapping[int, bytes]

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
        buffer, size = read_file(path)
        found = scan(buffer.data[:size], DESCRIBING)
        if found is not None:
            return FileHeader((parse_any(found.values),), found.values)
        dataset = read_dataset(buffer, size)
        values, order = raw_values(dataset, DESCRIBING)
        header = parse_any(values, order)
        return FileHeader(tuple(frame_headers(dataset, header) or [header]), values)
    except Exception as error:  # pydicom raises nearly anything on damaged files
        raise UnreadableHeader(f"{type(error).__name__}: {error}") from error
