"""The curved frame of the spine: millimetres along and across the discs, in which every vertebra is upright.

Each disc has a plane; between two planes the frame is blended.  A place is given by the nearest disc and its
distances to the left, posterior and up from the middle of that disc, in mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
AnyFloats = NDArray[np.floating]

DISCS = (*"t9_t10 t10_t11 t11_t12 t12_l1 l1_l2 l2_l3 l3_l4 l4_l5 l5_s1 s1_s2 s2_s3".split(),)
FIRST_LABELLED = DISCS.index("l1_l2")
_ANCHOR = DISCS.index("l3_l4")
# Medians of 40 mid-sagittal outlines (data notes, section 4.1): inclination in degrees, + = front higher.
_INCLINATION_DEG = np.array([4.0, 7.0, 9.0, 9.6, 9.7, 6.4, -1.7, -10.9, -30.9, -42.0, -34.0])
# The sacrum's own slope: how much of it each disc takes part in.
_SACRAL_SHARE = np.array([0.0] * 8 + [0.4, 1.0, 1.2])
_DISTANCE_MM = np.array([29.0, 31.0, 32.5, 34.0, 35.6, 36.8, 36.8, 37.0, 30.0, 26.0])
# In real spines the lowest steps are shorter than these by up to a fifth, some hardly (SPIDER and other public masks).
_LOWEST_STEP_SHARE = (0.8, 1.04)


@dataclass(frozen=True)
class SpineCoordinates:
    """Flat arrays over points: index of the nearest disc and the position in its frame.

    `fraction` is h as a share of the distance to the next disc plane, in -0.5..0.5.
    """

    disc: NDArray[np.intp]
    posterior: Floats
    left: Floats
    height: Floats
    fraction: Floats


@dataclass(frozen=True)
class SpineCurve:
    """Centres (disc, 3) and axes (disc, 3: left, posterior, up; 3) of disc planes, in patient mm (LPS)."""

    centres: NDArray[np.float64]
    axes: NDArray[np.float64]

    def point(self, disc: int, left: float, posterior: float, height: float) -> NDArray[np.float64]:
        """Patient position (3,) of a place in a disc's frame: the inverse of `locate`."""
        if height == 0.0:
            return self.centres[disc] + np.array([left, posterior, 0.0]) @ self.axes[disc]
        # `locate` has no closed inverse: a few corrections of the straight guess come within 0.001 mm.
        wanted = np.array([left, posterior, height])
        guess = wanted.copy()
        for _ in range(12):
            position = self.centres[disc] + guess @ self.axes[disc]
            found = self.locate(position[None, :])
            reached = np.array([found.left[0], found.posterior[0], found.height[0]], dtype=float)
            guess += wanted - reached
            if np.abs(wanted - reached).max() < 1e-3:
                break
        return self.centres[disc] + guess @ self.axes[disc]

    def locate(self, points: NDArray[np.floating]) -> SpineCoordinates:
        """Spine coordinates of patient points (N, 3); beyond the last planes the end frame is continued."""
        columns = np.ascontiguousarray(points.T, dtype=np.float32)
        planes_above = self._count_planes_above(columns)
        count = len(self.centres)
        out = SpineCoordinates(
            np.clip(planes_above, 0, count - 1), *(np.empty(columns.shape[1], np.float32) for _ in range(4))
        )
        for above in np.flatnonzero(np.bincount(planes_above)):
            chosen = np.flatnonzero(planes_above == above)
            if above in (0, count):
                self._continue_end(min(int(above), count - 1), chosen, columns[:, chosen], out)
            else:
                self._blend(int(above) - 1, chosen, columns[:, chosen], out)
        return out

    def _count_planes_above(self, columns: Floats) -> NDArray[np.intp]:
        """(N,) number of disc planes above each point of (3, N)."""
        lowest, highest = columns.min(axis=1, initial=np.inf), columns.max(axis=1, initial=-np.inf)
        above = np.zeros(columns.shape[1], np.intp)
        for disc, up in enumerate(self.axes[:, 2]):
            nearest = np.where(up > 0, lowest, highest) @ up - self.centres[disc] @ up
            farthest = np.where(up > 0, highest, lowest) @ up - self.centres[disc] @ up
            if farthest < 0:
                above += 1
            elif nearest < 0:
                above += self._along(disc, 2, columns) < 0
        return above

    def _along(self, disc: int, axis: int, columns: Floats) -> Floats:
        """Distance (N,) of points (3, N) from a disc's centre along one of its axes."""
        # By hand: a matrix product as narrow as this is several times slower in BLAS.
        x, y, z = self.axes[disc, axis].tolist()
        offset = float(self.axes[disc, axis] @ self.centres[disc])
        return np.asarray(columns[0] * x + columns[1] * y + (columns[2] * z - offset), np.float32)

    def _across(self, disc: int, columns: Floats) -> tuple[Floats, Floats]:
        return self._along(disc, 0, columns), self._along(disc, 1, columns)

    def _continue_end(self, disc: int, chosen: NDArray[np.intp], points: Floats, out: SpineCoordinates) -> None:
        height = self._along(disc, 2, points)
        out.left[chosen], out.posterior[chosen] = self._across(disc, points)
        out.height[chosen] = height
        out.fraction[chosen] = np.clip(height / 30.0, -0.5, 0.5)

    def _blend(self, upper: int, chosen: NDArray[np.intp], points: Floats, out: SpineCoordinates) -> None:
        below_upper, above_lower = self._along(upper, 2, points), self._along(upper + 1, 2, points)
        # Far behind a strong lordosis the planes cross: no spine is there, any answer within bounds will do.
        share = np.clip(above_lower / np.maximum(above_lower - below_upper, 1.0), 0.0, 1.0)
        left_upper, posterior_upper = self._across(upper, points)
        left_lower, posterior_lower = self._across(upper + 1, points)
        out.left[chosen] = left_lower + share * (left_upper - left_lower)
        out.posterior[chosen] = posterior_lower + share * (posterior_upper - posterior_lower)
        near_lower = share < 0.5
        out.disc[chosen] = np.where(near_lower, upper + 1, upper)
        out.height[chosen] = np.where(near_lower, above_lower, below_upper)
        out.fraction[chosen] = np.where(near_lower, share, share - 1.0)


def sample_curve(rng: np.random.Generator) -> SpineCurve:
    """A lordotic curve with individual size, lordosis, slight scoliosis, tilt and offset on the table."""
    size = np.clip(rng.normal(1.0, 0.07), 0.84, 1.18)
    lordosis = np.clip(rng.normal(1.0, 0.22), 0.5, 1.5)
    tilt = rng.normal(0.0, 2.0, len(DISCS)) + rng.normal(0.0, 2.5) + _SACRAL_SHARE * rng.normal(-4.0, 6.0)
    inclination = np.deg2rad(_INCLINATION_DEG * lordosis + tilt)
    steps = _DISTANCE_MM * size * rng.normal(1.0, 0.025, len(_DISTANCE_MM)) * _lowest_shorter(rng)
    bend = np.deg2rad(rng.normal(0.0, 1.3) * np.sin(np.linspace(0.0, np.pi, len(DISCS)) + rng.uniform(0.0, np.pi)))
    up = np.stack([np.sin(bend), np.sin(inclination), np.cos(inclination)], axis=1)
    up /= np.linalg.norm(up, axis=1, keepdims=True)
    left = np.array([1.0, 0.0, 0.0]) - up * up[:, :1]
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    posterior = np.cross(up, left)
    direction = up[:-1] + up[1:]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    centres = np.concatenate([np.zeros((1, 3)), np.cumsum(-direction * steps[:, None], axis=0)])
    centres -= centres[_ANCHOR]
    turn = _rotation(np.deg2rad(rng.normal(0.0, [1.5, 1.0, 2.5])))
    offset = rng.normal(0.0, [6.0, 8.0, 10.0])
    axes = np.stack([left, posterior, up], axis=1) @ turn.T
    return SpineCurve(centres @ turn.T + offset, axes)


def _lowest_shorter(rng: np.random.Generator) -> NDArray[np.float64]:
    """Factors of the steps: those to L5/S1 and, less so, L4/L5 are shorter; that within the sacrum varies by itself."""
    factors = np.ones(len(_DISTANCE_MM))
    share = float(rng.uniform(*_LOWEST_STEP_SHARE))
    lowest = DISCS.index("l5_s1")
    factors[lowest - 2 : lowest + 1] = share**0.4, share, rng.uniform(0.85, 1.1)
    return factors


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix of turns about x, y and z in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)
