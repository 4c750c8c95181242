"""The crops of a recipe's networks, on a disk that may be too small for all of them at once."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kernels.lumbar.labels import UNITS
from training.data.cache.crop_cache import Cache, requests_of
from training.recipe.schema import MemberRecipe

# Of a slice: where it lies, three vectors of float64.
GEOMETRY_BYTES = 3 * 3 * 8
log = logging.getLogger("crop-groups")


def bytes_of(members: Sequence[MemberRecipe], studies: int) -> int:
    """What the crops of these networks take together."""
    views = [(len(UNITS[one.unit]), one.view.slices.count, one.view.size_px) for one in requests_of(members)]
    return studies * sum(units * slices * (size_px**2 + GEOMETRY_BYTES) for units, slices, size_px in views)


def grouped(members: Sequence[MemberRecipe], studies: int, limit_bytes: float) -> list[list[MemberRecipe]]:
    """Members in their order, as many in a group as fit the limit, and at least one."""
    groups: list[list[MemberRecipe]] = [[]]
    for member in members:
        if groups[-1] and bytes_of([*groups[-1], member], studies) > limit_bytes:
            groups.append([])
        groups[-1].append(member)
    return groups


class CropGroups:
    """The cache of a member's group.  Where there are several groups, each one's files make room for the next."""

    def __init__(
        self,
        members: Sequence[MemberRecipe],
        studies: int,
        folder: Path,
        limit_bytes: float,
        make: Callable[[Sequence[MemberRecipe]], Cache],
    ) -> None:
        """Make the first group's cache in a folder, where others may have left theirs.  `make`: makes one there."""
        self._groups = grouped(members, studies, limit_bytes)
        self._folder, self._make = folder, make
        self._number = 0
        left_bytes = sum(file.stat().st_size for file in self._files())
        if left_bytes + bytes_of(self._groups[0], studies) > limit_bytes:
            self._make_room()
        self._cache: Cache | None = make(self._groups[0])
        self.landmarks: Mapping[str, Mapping[str, np.ndarray]] = self._cache.landmarks
        self.points: Mapping[str, Mapping[str, np.ndarray]] = self._cache.points

    def of(self, member: MemberRecipe) -> Cache:
        """A cache that holds the member's views: do not keep it, so that its files can go."""
        number = next(n for n, group in enumerate(self._groups) if member in group)
        if number != self._number or self._cache is None:
            self._cache = None
            gc.collect()  # a mapped file takes its place on the disk for as long as anybody maps it
            self._make_room()
            log.info("crops of group %d of %d replace others, for want of room", number + 1, len(self._groups))
            self._cache, self._number = self._make(self._groups[number]), number
        return self._cache

    def _files(self) -> list[Path]:
        return list(self._folder.glob("*.np[yz]"))

    def _make_room(self) -> None:
        for file in self._files():
            file.unlink()
