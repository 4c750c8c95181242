"""Changes of bytes that know nothing of what these mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

Random = np.random.Generator
Change = Callable[[bytes, Random], bytes]
# Where lengths, counts and signs turn over.
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


T = TypeVar("T")


def pick(choices: Sequence[T], random: Random) -> T:
    """One of them, as it is."""
    return choices[int(random.integers(len(choices)))]


def place(data: bytes, random: Random) -> int:
    """Somewhere in the data; more often near its beginning, where the headers are."""
    if not data:
        return 0
    return int(random.integers(min(len(data), 1024) if random.random() < 0.6 else len(data)))


def flip_bits(data: bytes, random: Random) -> bytes:
    """One to sixteen bits turned."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 17)) if data else 0):
        changed[place(data, random)] ^= 1 << int(random.integers(8))
    return bytes(changed)


def truncate(data: bytes, random: Random) -> bytes:
    """The beginning."""
    return data[: place(data, random)]


def cut_out(data: bytes, random: Random) -> bytes:
    """Without a part."""
    at = place(data, random)
    return data[:at] + data[at + int(random.integers(1, 65)) :]


def repeat(data: bytes, random: Random) -> bytes:
    """With a part twice."""
    at, length = place(data, random), int(random.integers(1, 257))
    return data[: at + length] + data[at:]


def insert_noise(data: bytes, random: Random) -> bytes:
    """With bytes that were not there."""
    at = place(data, random)
    return data[:at] + random.bytes(int(random.integers(1, 65))) + data[at:]


def overwrite_number(data: bytes, random: Random) -> bytes:
    """With a number at the edge of what its bytes hold."""
    at, width = place(data, random), pick((1, 2, 4), random)
    value = pick(EDGES, random) & ((1 << 8 * width) - 1)
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


def fill(data: bytes, random: Random) -> bytes:
    """With one byte over a stretch."""
    at, length = place(data, random), int(random.integers(1, 2049))
    length = min(length, len(data) - at)
    return data[:at] + pick((b"\0", b"\xff", b" ", b"A"), random) * length + data[at + length :]


CHANGES: tuple[Change, ...] = (flip_bits, truncate, cut_out, repeat, insert_noise, overwrite_number, fill)


def splice(data: bytes, other: bytes, random: Random) -> bytes:
    """The beginning of one, the end of another."""
    return data[: place(data, random)] + other[place(other, random) :]
