"""The crops of a recipe's networks in groups, for a disk that cannot hold all of them at once."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kernels.lumbar.labels import UNITS
from training.data.cache.crop_cache import Cache, requests_of
from training.recipe_schema.schema import MemberRecipe

# Geometry of a slice: three vectors of float64.
GEOMETRY_BYTES = 3 * 3 * 8
log = logging.getLogger("crop-groups")


def bytes_of(members: Sequence[MemberRecipe], studies: int) -> int:
    """Disk space of the crops of these networks together."""
    views = [(len(UNITS[one.unit]), one.view.slices.count, one.view.size_px) for one in requests_of(members)]
    return studies * sum(units * slices * (size_px**2 + GEOMETRY_BYTES) for units, slices, size_px in views)


def grouped(members: Sequence[MemberRecipe], studies: int, limit_bytes: float) -> list[list[MemberRecipe]]:
    """Networks in their order, in groups that fit the limit, each of at least one."""
    groups: list[list[MemberRecipe]] = [[]]
    for member in members:
        if groups[-1] and bytes_of([*groups[-1], member], studies) > limit_bytes:
            groups.append([])
        groups[-1].append(member)
    return groups


class CropGroups:
    """The cache of one group at a time; the files of a group are removed before the next one is made."""

    def __init__(
        self,
        members: Sequence[MemberRecipe],
        studies: int,
        folder: Path,
        limit_bytes: float,
        make: Callable[[Sequence[MemberRecipe]], Cache],
    ) -> None:
        """Make the first group's cache with `make` in `folder`; files of other runs there are removed if need be."""
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
        """A cache with the member's views.  Callers must not keep it, so that its files can be removed."""
        number = next(n for n, group in enumerate(self._groups) if member in group)
        if number != self._number or self._cache is None:
            self._cache = None
            gc.collect()  # the disk space of a mapped file is freed only once it is unmapped
            self._make_room()
            log.info("crops of group %d of %d replace others, for want of room", number + 1, len(self._groups))
            self._cache, self._number = self._make(self._groups[number]), number
        return self._cache

    def _files(self) -> list[Path]:
        return list(self._folder.glob("*.np[yz]"))

    def _make_room(self) -> None:
        for file in self._files():
            file.unlink()
