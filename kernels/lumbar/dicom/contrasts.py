"""Several contrasts in one series, such as echoes, phases or repeats, told apart before stacking: a stack is of one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..problems import Report
from .images import Image
from .placing import SAME_PLACE_MM

# Echo times of one contrast differ by rounding.
SAME_ECHO = 1.1
# Steps below this share of the usual one, and of this size, are no steps of a stack; gaps between discs are longer.
CROWDED, LARGEST_CROWDED_MM = 0.3, 1.0
LEAST_STEP_MM = 0.4
# A second contrast covers at least this share of the places, and so many.
LEAST_SHARE, LEAST_SLICES = 0.5, 3
# How well images of a type suit the networks, which see spin echoes: the first that applies counts.
TYPE_RANKS = (
    (5, {"P", "PHASE", "R", "REAL", "I", "IMAGINARY", "PHASE MAP", "VELOCITY MAP"}),
    (4, {"FAT", "F", "FAT_FRACTION", "ADC", "FA", "T2_STAR", "R2_STAR", "MAP", "T2 MAP", "T1 MAP"}),
    (3, {"OPP_PHASE", "OPPOSED", "OUT_PHASE", "OUT_OF_PHASE", "OP", "OPP"}),
    (1, {"WATER", "W"}),
)


@dataclass(frozen=True, eq=False)
class Places:
    """Where parallel slices lie."""

    centres_mm: np.ndarray
    """(S, 3)"""
    along_mm: np.ndarray
    """(S,) along the body."""

    @cached_property
    def order(self) -> list[int]:
        """All slices along the body."""
        order: list[int] = np.argsort(self.along_mm, kind="stable").tolist()
        return order

    @property
    def are_apart(self) -> bool:
        """Whether no slices crowd, of one place or of places that are nearer than the usual step."""
        if len(self.along_mm) < 2:
            return True
        steps = np.diff(self.centres_mm[self.order], axis=0)
        steps_mm, along_mm = np.sqrt((steps * steps).sum(1)), np.diff(self.along_mm[self.order])
        return bool(along_mm.min() >= SAME_PLACE_MM and steps_mm.min() >= limit_mm(steps_mm))

    def ordered(self, members: Sequence[int]) -> list[int]:
        """Some of the slices along the body."""
        order: list[int] = np.argsort(self.along_mm[members], kind="stable").tolist()
        return [members[place] for place in order]

    def steps_mm(self, members: Sequence[int]) -> np.ndarray:
        """(S - 1,) distances of neighbours."""
        steps: np.ndarray = np.linalg.norm(np.diff(self.centres_mm[self.ordered(members)], axis=0), axis=1)
        return steps

    def crowded_steps_mm(self, members: Sequence[int]) -> list[float]:
        """The distances of neighbours that are far below the usual one."""
        steps = self.steps_mm(members)
        limit = limit_mm(steps)
        return [step for step in steps.tolist() if step < limit]


def usual_step_mm(steps_mm: np.ndarray) -> float:
    """The usual one of the (S,) distances of neighbours: an upper quartile, as other contrasts add small ones."""
    steps = sorted(step for step in steps_mm.tolist() if step >= SAME_PLACE_MM)
    wide = [step for step in steps if step >= LEAST_STEP_MM]
    chosen = wide if 10 * len(wide) >= len(steps) else steps
    return chosen[3 * len(chosen) // 4] if chosen else 0.0


def limit_mm(steps_mm: np.ndarray) -> float:
    """What is nearer is no step of a stack."""
    return max(min(CROWDED * usual_step_mm(steps_mm), LARGEST_CROWDED_MM), SAME_PLACE_MM)


def told_apart(images: Sequence[Image], places: Places, kind: str, report: Report) -> list[list[int]]:
    """Indices of the images of each stack, of one contrast; contrasts that are left out are Problems.

    Images whose places do not crowd stay together, but for other echo times.  Of contrasts at the same places the one
    is kept that suits the kind best.
    """
    parts = _split(range(len(images)), _echoes(images))
    types, acquisitions = zip(*((one.contrast.image_type, one.contrast.acquisition) for one in images), strict=True)
    for part_keys in (types, acquisitions):
        parts = [piece for one in parts for piece in _if_it_helps(one, _split(one, part_keys), places)]
    parts = [piece for one in parts for piece in _if_it_helps(one, _runs(one, images, places), places)]
    return _chosen(parts, images, places.along_mm, kind, report)


def _echoes(images: Sequence[Image]) -> list[int]:
    """A number for each echo time, equal but for rounding; images without one belong to the most frequent."""
    times = sorted({image.contrast.echo_ms for image in images if image.contrast.echo_ms is not None})
    group, groups = 0, dict[float | None, int]()
    for before, time in zip([None, *times], times, strict=False):
        group += before is not None and time > before * SAME_ECHO
        groups[time] = group
    known = [groups[image.contrast.echo_ms] for image in images if image.contrast.echo_ms is not None]
    groups[None] = max(known, key=known.count, default=0)
    return [groups[image.contrast.echo_ms] for image in images]


def _split(members: Sequence[int], keys: Sequence[Hashable]) -> list[list[int]]:
    classes: dict[Hashable, list[int]] = {}
    for index in members:
        classes.setdefault(keys[index], []).append(index)
    return list(classes.values())


def _runs(members: list[int], images: Sequence[Image], places: Places) -> list[list[int]]:
    """Repeats of the same places, in the order of instance numbers; one list where only some places are repeated."""
    ordered, steps_mm = places.ordered(members), places.steps_mm(members)
    limit = limit_mm(steps_mm)
    taken = [[ordered[0]]]
    for index, step_mm in zip(ordered[1:], steps_mm, strict=True):
        if step_mm < limit:
            taken[-1].append(index)
        else:
            taken.append([index])
    repeated = [sorted(place, key=lambda index: images[index].order) for place in taken if len(place) > 1]
    is_run = len(repeated) >= max(LEAST_SLICES, LEAST_SHARE * len(taken))
    if not is_run or all(_is_copy(place, images) for place in repeated):
        return [members]
    runs: list[list[int]] = [[place[0] for place in taken if len(place) == 1]]
    for place in repeated:
        for rank, index in enumerate(place):
            runs += [[]] if rank == len(runs) else []
            runs[rank].append(index)
    return [sorted(run) for run in runs]


def _is_copy(place: Sequence[int], images: Sequence[Image]) -> bool:
    first = images[place[0]].words
    return all(np.array_equal(images[index].words, first) for index in place[1:])


def _if_it_helps(whole: list[int], pieces: list[list[int]], places: Places) -> list[list[int]]:
    """The pieces, if they halve the crowding at least; else the whole."""
    before = len(places.crowded_steps_mm(whole))
    left = sum(len(places.crowded_steps_mm(piece)) for piece in pieces)
    return pieces if before and 2 * left <= before else [whole]


def _chosen(
    parts: Sequence[list[int]], images: Sequence[Image], along_mm: np.ndarray, kind: str, report: Report
) -> list[list[int]]:
    """The parts without those at the places of a better one."""
    largest = max(map(len, parts))

    def unsuitability(part: Sequence[int]) -> tuple[object, ...]:
        contrast = images[part[0]].contrast
        echo_ms = contrast.echo_ms or 0.0
        rank = next((rank for rank, types in TYPE_RANKS if types & set(contrast.image_type)), 0)
        echo = echo_ms if kind.endswith("t1") else -echo_ms
        return len(part) < 0.8 * largest, rank, echo, min(images[index].order for index in part)

    kept: list[list[int]] = []
    for part in sorted(parts, key=unsuitability):
        rival = next((one for one in kept if _share_places(along_mm[one], along_mm[part])), None)
        if rival is None:
            kept.append(part)
            continue
        detail = f"left out: {_described(part, images)}; used are {_described(rival, images)}"
        report.add("other-contrast", detail, images[part[0]].file if len(part) == 1 else "")
    return sorted(kept)


def _share_places(one_mm: np.ndarray, other_mm: np.ndarray) -> bool:
    """Whether half of the shorter extent is common to both."""
    common = min(one_mm.max(), other_mm.max()) - max(one_mm.min(), other_mm.min())
    return bool(common >= LEAST_SHARE * min(np.ptp(one_mm), np.ptp(other_mm)))


def _described(part: Sequence[int], images: Sequence[Image]) -> str:
    contrast, numbers = images[part[0]].contrast, sorted(images[index].instance for index in part)
    echo = f"echo time {contrast.echo_ms:g} ms" if contrast.echo_ms is not None else ""
    acquisition = f"acquisition {contrast.acquisition}" if contrast.acquisition is not None else ""
    said = ", ".join(filter(None, [echo, "\\".join(contrast.image_type), acquisition]))
    return f"{len(part)} slices of numbers {numbers[0]} to {numbers[-1]}" + (f" ({said})" if said else "")
