"""The canal at each level, from a mask: its centre beside the disc's posterior edge, and its width from front to back.

Masks: canal 100; discs 201, 202, … from the lowest upwards.  The lowest is taken as L5/S1; where that is in doubt, the
patient is refused with the reason.  Severity by the width is a proxy (Steurer et al. 2011: < 10 mm relative, < 7 mm
absolute stenosis are usual limits), not a reading of the images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.lumbar.labels import LEVELS
from training.data.spider.mha import Volume

CANAL = 100
DISCS = dict(zip(LEVELS, range(205, 200, -1), strict=True))
# Widths (mm) below which the canal counts as moderately and as severely narrow.
MODERATE_MM, SEVERE_MM = 10.0, 7.0
# Slices up to so far from the midline count as middle ones.
MIDDLE_MM = 5.0
# Half of the thickness of the cross-section, and of the piece of the canal whose direction is its normal.
SECTION_MM, PIECE_MM = 1.0, 15.0
ROUNDS = 4
EDGE_MM = 1.0
# Outside of these the levels cannot be those that the labels say.
STEP_MM, WIDTH_MM = (15.0, 60.0), (2.0, 35.0)
# The disc of S1/S2 is much shorter, from front to back, than that above it.
LEAST_DEPTH = 0.6


class DoubtfulError(Exception):
    """Levels that cannot be told with certainty, with the reason."""


@dataclass(frozen=True)
class CanalLevel:
    """The canal at one level."""

    point_mm: np.ndarray
    """(3,) patient mm of the centre of its cross-section."""
    width_mm: float
    """From front to back, in the middle."""

    @property
    def severity(self) -> int:
        """0, 1 or 2 by the width."""
        return 2 if self.width_mm < SEVERE_MM else 1 if self.width_mm < MODERATE_MM else 0


def canal_levels(mask: Volume) -> dict[str, CanalLevel]:
    """Level → canal, from L1/L2 down.  Raises DoubtfulError."""
    missing = [f"{label} ({_text(level)})" for level, label in DISCS.items() if not (mask.voxels == label).any()]
    if missing:
        raise DoubtfulError(f"the mask lacks the discs {', '.join(missing)}")
    canal = _points(mask, CANAL)
    if not len(canal):
        raise DoubtfulError("the mask has no canal (100)")
    discs = {level: _points(mask, label) for level, label in DISCS.items()}
    _check_discs(discs)
    found = {level: _at(mask, canal, disc, level) for level, disc in discs.items()}
    for level, one in found.items():
        if not WIDTH_MM[0] <= one.width_mm <= WIDTH_MM[1]:
            raise DoubtfulError(f"the canal is {one.width_mm:.1f} mm wide at {_text(level)}")
    return found


def _text(level: str) -> str:
    return level.upper().replace("_", "/")


def _points(mask: Volume, label: int) -> np.ndarray:
    """(N, 3) patient mm of the voxels of a label."""
    return mask.to_patient(np.argwhere(mask.voxels == label))


def _check_discs(discs: dict[str, np.ndarray]) -> None:
    """Raises DoubtfulError unless the discs follow each other upwards as lumbar ones do."""
    names = list(discs)
    middles = np.array([points.mean(0) for points in discs.values()])
    for (upper, lower), step in zip(zip(names, names[1:], strict=False), -np.diff(middles, axis=0), strict=True):
        if step[2] <= 0 or not STEP_MM[0] <= np.linalg.norm(step) <= STEP_MM[1]:
            raise DoubtfulError(f"{_text(upper)} is {step[2]:.0f} mm above {_text(lower)}")
    lowest, next_mm = (_depth_mm(discs[level]) for level in names[:-3:-1])
    if lowest < LEAST_DEPTH * next_mm:
        raise DoubtfulError(f"the lowest disc is {lowest:.0f} mm deep and the next {next_mm:.0f} mm: it may be S1/S2")


def _depth_mm(disc: np.ndarray) -> float:
    """Length of a disc's middle along its longest axis in the sagittal plane."""
    middle = disc[np.abs(disc[:, 0] - disc[:, 0].mean()) <= MIDDLE_MM][:, 1:]
    axis = np.linalg.svd(middle - middle.mean(0), full_matrices=False)[2][0]
    return float(np.ptp(middle @ axis))


def _at(mask: Volume, canal: np.ndarray, disc: np.ndarray, level: str) -> CanalLevel:
    """The canal's cross-section through a disc's posterior edge, at right angles to the canal."""
    middle_x = canal[np.abs(canal[:, 2] - disc[:, 2].mean()) <= PIECE_MM][:, 0]
    if not len(middle_x):
        raise DoubtfulError(f"the canal does not reach {_text(level)}")
    edge = _posterior_edge(disc, float(middle_x.mean()), _text(level))
    centre = edge
    for _ in range(ROUNDS):
        piece = canal[np.abs(canal[:, 2] - centre[2]) <= PIECE_MM]
        if not len(piece) or np.ptp(piece[:, 2]) < PIECE_MM:
            raise DoubtfulError(f"the canal does not reach {_text(level)}")
        slopes = np.polyfit(piece[:, 2], piece[:, :2], 1)[0]  # (2,) of x and y along z
        along = np.array([*slopes, 1.0]) / np.sqrt(1 + slopes @ slopes)
        section = canal[np.abs((canal - edge) @ along) <= SECTION_MM]
        if not len(section):
            raise DoubtfulError(f"the canal does not reach {_text(level)}")
        centre = section.mean(0)
    return CanalLevel(centre, _width_mm(mask, section, centre))


def _posterior_edge(disc: np.ndarray, middle_x: float, level: str) -> np.ndarray:
    """(3,) mean of the rearmost points of a disc's slices at the midline."""
    middle = disc[np.abs(disc[:, 0] - middle_x) <= MIDDLE_MM]
    if not len(middle):
        raise DoubtfulError(f"the disc of {level} does not lie in front of the canal")
    edges = []
    for place in np.unique(np.rint(middle[:, 0] * 2)):  # slices are more than half a millimetre apart
        its = middle[np.rint(middle[:, 0] * 2) == place]
        edges.append(its[its[:, 1] >= its[:, 1].max() - EDGE_MM].mean(0))
    return np.asarray(np.median(edges, axis=0))


def _width_mm(mask: Volume, section: np.ndarray, centre: np.ndarray) -> float:
    """Median over the middle slices of the section's area in a slice over its thickness."""
    slices = np.rint(mask.to_index(section)[:, 0]).astype(int)
    middle = mask.to_index(centre)[0]
    _, between_rows, between_columns = mask.spacing_mm
    reach = max(0.6, MIDDLE_MM / 2 / mask.spacing_mm[0])
    counts = [int((slices == one).sum()) for one in np.unique(slices) if abs(one - middle) <= reach]
    return float(np.median(counts)) * between_rows * between_columns / (2 * SECTION_MM) if counts else 0.0
