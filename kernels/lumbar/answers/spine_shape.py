"""The shape of a lumbar spine: where landmarks lie to each other, so that known ones vouch for the rest.

A probabilistic principal component model (Tipping & Bishop 1999) of the 25 landmarks and of the middles of a study's
stacks, all together, free to lie anywhere in space.  Given some points, it says where the others are to be expected,
and which of the given ones the rest contradicts: a level found one disc too low, a point on a kidney.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..dicom.study import Study, longest
from ..labels import SERIES_KINDS
from ..manifest import SHAPE_POINTS, STACK_CENTRES, Shape

# A patient may lie anywhere in the scanner: the standard deviation of the whole shape's place.
ANYWHERE_MM = 1e4
# A point is contradicted where the others expect it farther off than this, and than so many standard deviations.
CONTRADICTED_MM = 12.0
CONTRADICTED_SD = 5.0
# A pair of landmarks expects the others this exactly: more, and a mean of two neighbouring discs would pass for both.
ROUGHLY_MM = 10.0
ROUNDS = 5
# What a located point is off by, as the model takes it; the middle of a stack is where it is.
LOCATED_MM = 3.0

Points = Mapping[str, np.ndarray]


def stack_centres(study: Study) -> dict[str, np.ndarray]:
    """Name → (3,) mm: the middle of the longest stack of each kind whose place in the patient is known."""
    centres = {}
    for kind in SERIES_KINDS.values():
        stacks = [stack for stack in study.of_kind(kind) if not stack.assumed]
        if stacks:
            centres_mm = longest(stacks).centres_mm
            centres[f"centre_{kind}"] = (centres_mm[0] + centres_mm[-1]) / 2
    return centres


class Expectation:
    """A shape, ready to be asked."""

    def __init__(self, shape: Shape) -> None:
        size = len(SHAPE_POINTS)
        modes = np.array(shape.modes_mm).reshape(-1, 3 * size)
        self._mean = np.array(shape.mean_mm).reshape(size, 3)
        covariance = modes.T @ modes + np.diag(np.square(shape.rest_mm))
        for axis in range(3):
            covariance[axis::3, axis::3] += ANYWHERE_MM**2
        self._covariance = covariance.reshape(size, 3, size, 3)

    def of(self, known: Points, wanted: str) -> tuple[np.ndarray, np.ndarray]:
        """(3,) mm where a landmark is to be expected, and the (3, 3) covariance of it.

        `known` are points in patient mm by name; at least one.
        """
        names = [name for name in known if name != wanted]
        index, asked = [SHAPE_POINTS.index(name) for name in names], SHAPE_POINTS.index(wanted)
        error = np.repeat([1.0 if name in STACK_CENTRES else LOCATED_MM for name in names], 3)
        among = self._covariance[index][:, :, index].reshape(3 * len(names), -1) + np.diag(error**2)
        across = self._covariance[asked][:, index].reshape(3, -1)
        off = np.concatenate([np.asarray(known[name]) - self._mean[SHAPE_POINTS.index(name)] for name in names])
        gain = np.linalg.solve(among, across.T).T
        return self._mean[asked] + gain @ off, self._covariance[asked, :, asked] - gain @ across.T

    def contradicted(self, located: Points, confidence: Mapping[str, float]) -> list[str]:
        """The landmarks that do not fit to the largest set, by confidence, that fits together.

        Every pair says where it expects the others (as RANSAC does, yet of all pairs); the pair whose expectation most
        of them meet begins the set.  A localiser that is one disc off has company of its own, but less of it.
        """
        names = list(located)
        if len(names) < 3:
            return []
        points = np.stack([located[name] for name in names])
        weights = np.array([0.1 + confidence.get(name, 0.0) for name in names])
        off_mm = np.linalg.norm(self._expected_by_pairs(names, points) - points, axis=2)
        support = (np.maximum(1 - (off_mm / ROUGHLY_MM) ** 2, 0) * weights).sum(1)
        fits = off_mm[int(support.argmax())] <= ROUGHLY_MM
        for _ in range(ROUNDS):
            inside = {name: located[name] for name, fit in zip(names, fits, strict=True) if fit}
            again = np.array([self._fits(name, located[name], inside) for name in names])
            if (again == fits).all() or again.sum() < 2:
                break
            fits = again
        return [name for name, fit in zip(names, fits, strict=True) if not fit]

    def _fits(self, name: str, point: np.ndarray, inside: Points) -> bool:
        """Whether a point lies where the others of a set expect it."""
        if set(inside) <= {name}:
            return True
        expected, covariance = self.of(inside, name)
        off = np.asarray(point) - expected
        odd = np.sqrt(off @ np.linalg.solve(covariance + LOCATED_MM**2 * np.eye(3), off))
        return bool(np.linalg.norm(off) <= CONTRADICTED_MM or odd <= CONTRADICTED_SD)

    def _expected_by_pairs(self, names: list[str], points: np.ndarray) -> np.ndarray:
        """(pair, n, 3) where each two of n points expect all of them."""
        index = np.array([SHAPE_POINTS.index(name) for name in names])
        first, second = np.triu_indices(len(names), 1)
        covariance = self._covariance[index][:, :, index]
        pairs = np.stack([first, second], 1)
        among = np.empty((len(pairs), 2, 3, 2, 3))
        for a in range(2):
            for b in range(2):
                among[:, a, :, b] = covariance[pairs[:, a], :, pairs[:, b]]
        among = among.reshape(-1, 6, 6) + LOCATED_MM**2 * np.eye(6)
        across = covariance[:, :, pairs].transpose(2, 3, 4, 0, 1).reshape(len(pairs), 6, -1)
        off = (points - self._mean[index])[pairs].reshape(-1, 1, 6)
        moved = (off @ np.linalg.solve(among, across)).reshape(len(pairs), len(names), 3)
        return np.asarray(self._mean[index] + moved)
