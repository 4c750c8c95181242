"""One patient's lumbar anatomy: sizes, how narrow each place is, and where radiologists click."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.lumbar.labels import CONDITIONS, LEVELS, ROW_PLACES

from .curve import DISCS, FIRST_LABELLED, Floats, SpineCurve, sample_curve
from .severity import Severity, level_values

WALL_MM = 15.0
"""Distance of the posterior wall of the vertebral bodies from the discs' centre."""
_SAC_BEHIND_WALL_MM = 1.4

# Dimensions in mm at narrowing 0, 1, 2 and 3 (see severity.py); linear in between.
_SAC_DEPTH_MM = (15.0, 10.8, 7.2, 3.0)
_SAC_WIDTH_MM = (17.5, 15.5, 12.0, 7.0)
_RECESS_DEPTH_MM = (7.4, 5.0, 2.7, 0.2)
_FORAMEN_WIDTH_MM = (10.0, 7.0, 4.0, 1.4)
_FORAMEN_HEIGHT_MM = (21.0, 18.0, 13.5, 9.0)

# By disc T9/T10 .. S2/S3: body and disc sizes, and the sac between the discs.
_BODY_FRONT_MM = (15.0, 15.5, 16.5, 17.5, 18.5, 19.5, 20.0, 20.5, 20.0, 15.0, 11.0)
_BODY_HALF_WIDTH_MM = (17.0, 18.0, 19.5, 21.0, 23.0, 24.0, 25.0, 26.0, 27.0, 26.0, 22.0)
_DISC_HEIGHT_MM = (4.6, 5.0, 5.8, 6.8, 8.0, 9.0, 9.8, 10.2, 9.4, 2.2, 1.4)
_DISC_WEDGE = (0.0, 0.0, 0.0, 0.0, 0.01, 0.02, 0.04, 0.08, 0.13, 0.0, 0.0)
_SAC_BETWEEN_MM = (14.0, 14.5, 15.0, 15.5, 15.5, 15.0, 14.5, 14.0, 12.0, 8.0, 4.0)
_FORAMEN_SIDE_MM = (13.0, 13.0, 13.5, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0, 19.0, 19.0)
_ROOTS = (0, 0, 0, 0, 20, 20, 18, 14, 9, 5, 2)


@dataclass(frozen=True)
class Sided:
    """One value on the patient's left and one on the right."""

    left: float
    right: float


@dataclass(frozen=True)
class DiscLevel:
    """Shapes in the frame of one disc, in mm; what lies between two discs belongs half to each."""

    body_front: float
    body_half_width: float
    disc_height: float
    wedge: float
    """Growth of the disc's height toward the front, mm per mm."""
    degeneration: float
    """0 = bright nucleus, 1 = black disc."""
    sac_depth: float
    sac_width: float
    sac_depth_between: float
    recess_depth: Sided
    foramen_width: Sided
    foramen_height: Sided
    foramen_side: float
    """Distance of the foramina from the midline."""
    facet_size: Sided
    slip: float
    """Anterior slip (listhesis) of the vertebra above, mm."""
    roots: int
    lumbar: bool
    """Has facets, recesses and foramina of its own."""
    sacral: bool


@dataclass(frozen=True)
class Anatomy:
    """A patient: curve of the spine, one DiscLevel a disc of DISCS, and what lies around them.

    `situs` is +1 with the aorta on the left, -1 in a mirrored patient.  `root_places` (root, 2) are the roots
    of the cauda equina in the sac: across (-1 right .. 1 left) and in depth (-1 front .. 1 back).
    """

    curve: SpineCurve
    levels: tuple[DiscLevel, ...]
    root_places: NDArray[np.float64]
    situs: float
    conus_height_mm: float
    """Tip of the spinal cord above the L1/L2 disc."""
    back_fat_mm: float
    muscle_fat: float
    """Share of fat within the muscles of the back, 0..1."""
    muscle_size: float
    epidural_fat: float

    def along(self, ladder: Floats, name: str) -> Floats:
        """A DiscLevel's number, interpolated at `ladder` = places counted in discs from the top."""
        values = np.array([getattr(level, name) for level in self.levels])
        return np.interp(ladder, np.arange(len(values)), values).astype(np.float32)

    def landmarks(self) -> NDArray[np.float64]:
        """(25, 3) patient mm of the places that radiologists click, in the order of ROWS."""
        return np.stack([self._landmark(*place) for place in ROW_PLACES.values()])

    def _landmark(self, condition: str, level_name: str) -> NDArray[np.float64]:
        disc = DISCS.index(level_name)
        level = self.levels[disc]
        if condition == "spinal_canal_stenosis":
            return self.curve.point(disc, 0.0, sac_middle(level), 0.0)
        side = 1.0 if condition.startswith("left") else -1.0
        if "foraminal" in condition:
            return self.curve.point(disc, side * level.foramen_side, WALL_MM + 4.0, 7.5)
        depth = level.recess_depth.left if side > 0 else level.recess_depth.right
        across = 7.6 + 0.16 * depth
        return self.curve.point(disc, side * across, recess_front(depth) + 0.5 * depth, 0.0)


def sac_front(between: float, depth: float) -> float:
    """Anterior border (posterior mm) of a sac `depth` deep here and `between` deep between the discs.

    Half of the narrowing is at its front.
    """
    return WALL_MM + _SAC_BEHIND_WALL_MM + 0.5 * max(between - depth, 0.0)


def sac_fronts(between: Floats, depth: Floats) -> Floats:
    """`sac_front` of many points."""
    return np.float32(WALL_MM + _SAC_BEHIND_WALL_MM) + np.float32(0.5) * np.maximum(between - depth, np.float32(0.0))


def sac_middle(level: DiscLevel) -> float:
    """Middle of the sac at the disc, in posterior mm."""
    return sac_front(level.sac_depth_between, level.sac_depth) + 0.5 * level.sac_depth


def recess_front(depth: float) -> float:
    """Anterior border of a subarticular recess `depth` mm deep: half of its narrowing is at the disc."""
    return WALL_MM + 0.4 + 0.5 * (_RECESS_DEPTH_MM[0] - depth)


def _millimetres(narrowing: float, table: tuple[float, ...], size: float) -> float:
    return float(np.interp(narrowing, (0.0, 1.0, 2.0, 3.0), table)) * size


def sample_anatomy(rng: np.random.Generator, severity: Severity) -> Anatomy:
    """A random patient with the given narrowing; all else is independent of the grades."""
    curve = sample_curve(rng)
    places = np.stack([rng.uniform(-0.8, 0.8, 20), rng.uniform(-0.35, 0.85, 20)], axis=1)
    places /= np.maximum(1.0, np.linalg.norm(places, axis=1, keepdims=True) / 0.85)
    wear = rng.beta(2.2, 1.0)
    size = float(np.clip(rng.normal(1.0, 0.05), 0.88, 1.14))
    return Anatomy(
        curve=curve,
        levels=tuple(_sample_level(rng, disc, severity, wear, size) for disc in range(len(DISCS))),
        root_places=places,
        situs=1.0,
        conus_height_mm=float(rng.normal(12.0, 10.0)),
        back_fat_mm=float(np.clip(rng.gamma(1.6, 9.0), 1.5, 55.0)),
        muscle_fat=float(rng.beta(1.5, 3.5)),
        muscle_size=float(rng.normal(1.0, 0.08)),
        epidural_fat=float(rng.uniform(0.5, 1.2)),
    )


def _sample_level(rng: np.random.Generator, disc: int, severity: Severity, wear: float, size: float) -> DiscLevel:
    number = disc - FIRST_LABELLED
    labelled = 0 <= number < len(LEVELS)
    mild = float(rng.uniform(0.1, 0.4))
    narrow = {c: float(level_values(severity.narrowing, c)[number]) if labelled else mild for c in CONDITIONS}

    def sided(condition: str, table: tuple[float, ...]) -> Sided:
        jitter = rng.normal(1.0, 0.02, 2)
        left, right = narrow[f"left_{condition}"], narrow[f"right_{condition}"]
        return Sided(_millimetres(left, table, jitter[0]), _millimetres(right, table, jitter[1]))

    slipped = labelled and rng.random() < 0.04
    is_remnant = disc >= DISCS.index("s1_s2")
    degeneration = float(np.clip(wear + rng.normal(0.0, 0.35), 0.0, 1.0))
    grown, depth_share = 1.0, 1.0
    if is_remnant:
        # From a line to a disc as high as a worn lumbar one, which is taken for L5/S1 more easily than all else.
        grown, depth_share = float(np.clip(np.exp(rng.normal(0.1, 0.55)), 0.4, 3.0)), float(rng.uniform(0.8, 1.1))
        degeneration = float(rng.beta(3.0, 1.2))
    between = _SAC_BETWEEN_MM[disc] * float(rng.normal(1.0, 0.03))
    canal = narrow["spinal_canal_stenosis"]
    depth = _millimetres(canal, _SAC_DEPTH_MM, 1.0) if labelled else between
    return DiscLevel(
        body_front=_BODY_FRONT_MM[disc] * size * depth_share,
        body_half_width=_BODY_HALF_WIDTH_MM[disc] * size,
        disc_height=_DISC_HEIGHT_MM[disc] * size * float(rng.uniform(0.9, 1.1)) * (1.0 - 0.3 * degeneration) * grown,
        wedge=_DISC_WEDGE[disc],
        degeneration=degeneration,
        sac_depth=depth,
        sac_width=_millimetres(canal, _SAC_WIDTH_MM, 1.0) if labelled else 1.15 * between,
        sac_depth_between=between,
        recess_depth=sided("subarticular_stenosis", _RECESS_DEPTH_MM),
        foramen_width=sided("neural_foraminal_narrowing", _FORAMEN_WIDTH_MM),
        foramen_height=sided("neural_foraminal_narrowing", _FORAMEN_HEIGHT_MM),
        foramen_side=_FORAMEN_SIDE_MM[disc],
        facet_size=Sided(*(float(v) for v in rng.normal(1.0, 0.1, 2))),
        slip=float(rng.uniform(2.0, 6.0) if slipped else rng.normal(0.0, 0.5)),
        roots=_ROOTS[disc],
        lumbar=labelled or disc < FIRST_LABELLED,
        sacral=is_remnant,
    )
