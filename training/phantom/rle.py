"""DICOM's RLE Lossless (PackBits by byte plane), encoded without a loop over bytes."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

_LONGEST_PACKET = 128
_SHORTEST_RUN = 3


def encode_rle(image: NDArray[np.uint16]) -> bytes:
    """One frame (rows, columns) as RLE Lossless: header of offsets, then the high and the low byte plane."""
    planes = [_encode_plane((image >> 8).astype(np.uint8)), _encode_plane((image & 0xFF).astype(np.uint8))]
    header = struct.pack("<16I", len(planes), 64, 64 + len(planes[0]), *([0] * 13))
    return header + b"".join(planes)


def _encode_plane(plane: NDArray[np.uint8]) -> bytes:
    """PackBits of a plane, of even length."""
    data = plane.ravel()
    starts, lengths, repeats = _packets(plane)
    sizes = np.where(repeats, 2, lengths + 1)
    places = np.cumsum(sizes) - sizes
    out = np.zeros(int(sizes.sum()), np.uint8)
    # A repeated byte left over alone gets 257 - 1 = 256 = 0 in a byte: rightly the header of one literal.
    out[places] = (np.where(repeats, 257 - lengths, lengths - 1) & 0xFF).astype(np.uint8)
    out[places[repeats] + 1] = data[starts[repeats]]
    literal = ~repeats
    counts = lengths[literal]
    step = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    out[np.repeat(places[literal] + 1, counts) + step] = data[np.repeat(starts[literal], counts) + step]
    return out.tobytes() + b"\0" * (len(out) % 2)


def _packets(plane: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Start, length and whether one byte repeats, of packets of at most 128 bytes within a row."""
    changes = np.ones(plane.shape, bool)
    changes[:, 1:] = plane[:, 1:] != plane[:, :-1]
    run_starts = np.flatnonzero(changes)
    long = np.diff(run_starts, append=plane.size) >= _SHORTEST_RUN
    begins = long | (run_starts % plane.shape[1] == 0)
    begins[1:] |= long[:-1]
    starts = run_starts[begins]
    lengths = np.diff(starts, append=plane.size)
    pieces = -(-lengths // _LONGEST_PACKET)
    owner = np.repeat(np.arange(len(starts)), pieces)
    skipped = _LONGEST_PACKET * (np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    return starts[owner] + skipped, np.minimum(lengths[owner] - skipped, _LONGEST_PACKET), long[begins][owner]
