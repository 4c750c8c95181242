"""Shape model of the lumbar spine: conditional means of landmarks given others, and rejection of outliers.

Probabilistic PCA (Tipping & Bishop 1999) of the 25 landmarks and the centres of a study's stacks, invariant to
translation.  Typical outliers are a level found one disc too low, or a point on a kidney.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..dicom.study import Study, longest
from ..labels import SERIES_KINDS, SIDES
from ..manifest import SHAPE_POINTS, STACK_CENTRES, UNKNOWN_MM, Shape

# Standard deviation of the whole shape's position: a patient may lie anywhere in the scanner.
ANYWHERE_MM = 1e4
# A point is an outlier if it is farther from its conditional mean than both this distance and this many standard
# deviations.
CONTRADICTED_MM = 12.0
CONTRADICTED_SD = 5.0
# Inlier threshold of the pairwise predictions; with a larger one the mean of two neighbouring discs would fit to both.
ROUGHLY_MM = 10.0
ROUNDS = 5
# Assumed standard error of a located landmark; centres of stacks have 1 mm.
LOCATED_MM = 3.0

Points = Mapping[str, np.ndarray]


def stack_centres(study: Study) -> dict[str, np.ndarray]:
    """Name → (3,) mm: the centre of the longest stack of each kind that has a known geometry."""
    centres = {}
    for kind in SERIES_KINDS.values():
        stacks = [stack for stack in study.of_kind(kind) if not stack.assumed]
        if stacks:
            centres_mm = longest(stacks).centres_mm
            centres[f"centre_{kind}"] = (centres_mm[0] + centres_mm[-1]) / 2
    return centres


class Expectation:
    """Conditional distributions of a shape model."""

    def __init__(self, shape: Shape) -> None:
        size = len(SHAPE_POINTS)
        modes = np.array(shape.modes_mm).reshape(-1, 3 * size)
        self._mean = np.array(shape.mean_mm).reshape(size, 3)
        rest_mm = np.array(shape.rest_mm).reshape(size, 3).max(1)
        self.known = frozenset(name for name, rest in zip(SHAPE_POINTS, rest_mm, strict=True) if rest < UNKNOWN_MM)
        """The points that some training study had: no other one is imputed."""
        covariance = modes.T @ modes + np.diag(np.square(shape.rest_mm))
        for axis in range(3):
            covariance[axis::3, axis::3] += ANYWHERE_MM**2
        self._covariance = covariance.reshape(size, 3, size, 3)

    def of(self, known: Points, wanted: str) -> tuple[np.ndarray, np.ndarray]:
        """(3,) conditional mean in mm of a landmark, and its (3, 3) covariance.

        `known`: name → patient mm; at least one.
        """
        names = [name for name in known if name != wanted]
        index, asked = [SHAPE_POINTS.index(name) for name in names], SHAPE_POINTS.index(wanted)
        error = np.repeat([1.0 if name in STACK_CENTRES else LOCATED_MM for name in names], 3)
        among = self._covariance[index][:, :, index].reshape(3 * len(names), -1) + np.diag(error**2)  # (3n, 3n)
        across = self._covariance[asked][:, index].reshape(3, -1)  # (3, 3n)
        off = np.concatenate([np.asarray(known[name]) - self._mean[SHAPE_POINTS.index(name)] for name in names])
        gain = np.linalg.solve(among, across.T).T
        return self._mean[asked] + gain @ off, self._covariance[asked, :, asked] - gain @ across.T

    def contradicted(self, located: Points, confidence: Mapping[str, float]) -> list[str]:
        """Outliers: the landmarks outside of the largest consistent set, weighted by confidence.

        As RANSAC, but over all pairs: each pair predicts all landmarks, the inliers of the best-supported pair start
        the set, and the set is refined until it is stable.  A landmark of one side weighs half: both sides of a level
        are counted in the same series, so that ten foramina a level too low must not outvote a surer canal.
        """
        names = list(located)
        if len(names) < 3:
            return []
        points = np.stack([located[name] for name in names])
        shares = [0.5 if name.startswith(SIDES) else 1.0 for name in names]
        weights = np.array([0.1 + confidence.get(name, 0.0) for name in names]) * shares
        off_mm = np.linalg.norm(self._expected_by_pairs(names, points) - points, axis=2)  # (pairs, n)
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
        """Whether a point is an inlier given the others of a set."""
        if set(inside) <= {name}:
            return True
        expected, covariance = self.of(inside, name)
        off = np.asarray(point) - expected
        odd = np.sqrt(off @ np.linalg.solve(covariance + LOCATED_MM**2 * np.eye(3), off))
        return bool(np.linalg.norm(off) <= CONTRADICTED_MM or odd <= CONTRADICTED_SD)

    def _expected_by_pairs(self, names: list[str], points: np.ndarray) -> np.ndarray:
        """(pairs, n, 3) conditional means of n points given each pair of them."""
        index = np.array([SHAPE_POINTS.index(name) for name in names])
        first, second = np.triu_indices(len(names), 1)
        covariance = self._covariance[index][:, :, index]
        pairs = np.stack([first, second], 1)
        among = np.empty((len(pairs), 2, 3, 2, 3))  # (pairs, point, axis, point, axis)
        for a in range(2):
            for b in range(2):
                among[:, a, :, b] = covariance[pairs[:, a], :, pairs[:, b]]
        among = among.reshape(-1, 6, 6) + LOCATED_MM**2 * np.eye(6)
        across = covariance[:, :, pairs].transpose(2, 3, 4, 0, 1).reshape(len(pairs), 6, -1)  # (pairs, 6, 3n)
        off = (points - self._mean[index])[pairs].reshape(-1, 1, 6)  # (pairs, 1, 6)
        moved = (off @ np.linalg.solve(among, across)).reshape(len(pairs), len(names), 3)
        return np.asarray(self._mean[index] + moved)
