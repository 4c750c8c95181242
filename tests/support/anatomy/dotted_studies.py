"""Studies whose images are black but for a dot at each landmark, in a grey that says which one it is.

And a localiser that reads them: what it is fed decides what it finds, so that finding the right place proves the way
to it and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.labels import LEVELS, ROWS, UNITS, row_of
from kernels.lumbar.manifest import Calibration
from kernels.lumbar.specs import Member, SliceChoice, ViewRequest

SIZE_PX, PIXEL_MM = 160, 1.6
GREY = {row: 10 * (number + 1) for number, row in enumerate(ROWS)}
CANAL = [f"spinal_canal_stenosis_{level}" for level in LEVELS]
RECESSES = [f"{side}_subarticular_stenosis_{level}" for side in ("left", "right") for level in LEVELS]
FORAMINA = [f"{side}_neural_foraminal_narrowing_{level}" for side in ("left", "right") for level in LEVELS]
AXES = {
    "sagittal": (np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0]), np.array([1.0, 0.0, 0.0])),
    "axial": (np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0])),
}


def stack(
    kind: str,
    points: Mapping[str, np.ndarray],
    middle: np.ndarray,
    slices: int,
    gap_mm: float = 4.0,
    series: str = "1",
    tilt_deg: float = 0.0,
) -> Stack:
    """Slices around a middle, each with the dots of the landmarks that lie nearer to it than to its neighbours."""
    columns, rows, along = AXES[kind.split("_")[0]]
    turn = np.deg2rad(tilt_deg)
    rows, along = np.cos(turn) * rows + np.sin(turn) * along, np.cos(turn) * along - np.sin(turn) * rows
    corner = middle - (SIZE_PX - 1) / 2 * PIXEL_MM * (columns + rows)
    pixels = np.zeros((slices, SIZE_PX, SIZE_PX), np.uint8)
    planes = []
    for number in range(slices):
        origin = corner + (number - (slices - 1) / 2) * gap_mm * along
        planes.append(Plane(origin, columns * PIXEL_MM, rows * PIXEL_MM))
        for name, point in points.items():
            row, column, distance_mm = planes[-1].to_pixel(point)
            if name in GREY and abs(distance_mm) <= gap_mm / 2:
                pixels[number, round(row) - 1 : round(row) + 2, round(column) - 1 : round(column) + 2] = GREY[name]
    return Stack(series, kind, pixels, tuple(planes), tuple(range(1, slices + 1)))


def study(*stacks: Stack) -> Study:
    return Study("7", tuple(stacks), [])


def middle_of(points: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    return np.mean([points[name] for name in names], axis=0)


def whole(series: str, count: int, **choice: Any) -> ViewRequest:
    """All slices, a pixel of the view for a pixel of the image."""
    slices = SliceChoice(by="all", count=count, **{"fit": "pad", **choice})
    return ViewRequest(series=series, slices=slices, size_px=SIZE_PX, normalisation="unit")  # type: ignore[arg-type]


class Reader:
    """A localiser that finds the dots of its targets; what it says of the others is the middle, with confidence 0.

    `shift_px` moves its answers down, `broken` is what it does instead: "nan", "outside", "raises".
    """

    def __init__(
        self,
        name: str,
        targets: Sequence[str],
        request: ViewRequest,
        unit: str = "study",
        answers: str = "points",
        confidence: float = 0.9,
        shift_px: float = 0.0,
        broken: str = "",
        calibration: Calibration | None = None,
    ) -> None:
        self.member = Member(
            name=name, role="localiser", unit=unit, inputs=(request,), targets=tuple(targets), answers=answers
        )  # type: ignore[arg-type]
        self.artefact = SimpleNamespace(calibration=calibration)
        self.confidence, self.shift_px, self.broken = confidence, shift_px, broken
        self.units = UNITS[unit]

    def __call__(self, views: Sequence[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        if self.broken == "raises":
            raise RuntimeError("out of memory\nand more")
        greys = (views[0] * 255).round().int().numpy()
        answer = torch.zeros(len(greys), len(self.member.targets), 4)
        for sample, volume in enumerate(greys):
            for number, target in enumerate(self.member.targets):
                answer[sample, number] = torch.tensor(self._find(volume, target))
        if self.broken:
            answer[..., 1] = {"nan": torch.nan, "outside": 1e4}[self.broken]
        return answer

    def _find(self, volume: np.ndarray, target: str) -> list[float]:
        """The middle of the dot of any unit's target: a unit shows its own alone near the middle of its slices."""
        wanted = {GREY[row_of(target, unit)] for unit in self.units}
        places = np.argwhere(np.isin(volume, list(wanted)))
        if not len(places):
            return [(len(volume) - 1) / 2, (SIZE_PX - 1) / 2, (SIZE_PX - 1) / 2, 0.0]
        middle = abs(places[:, 0] - (len(volume) - 1) / 2)
        if len(wanted) > 1:
            places = places[middle == middle.min()]
        number, row, column = np.median(places[places[:, 0] == places[0, 0]], axis=0)
        if self.member.answers == "slices":
            row = column = (SIZE_PX - 1) / 2
        return [number, row + self.shift_px, column, self.confidence]
