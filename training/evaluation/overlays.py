"""Pictures of located landmarks on the slices they were found on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from kernels.lumbar.labels import LEVELS, ROWS, group_of
from kernels.lumbar.study import Stack, Study

VIEWS = {"spinal": "sagittal_t2", "foraminal": "sagittal_t1", "subarticular": "axial_t2"}
LOCATED_COLOUR, TRUE_COLOUR = "#ffb000", "#35d0ff"


def draw(
    study: Study,
    located: Mapping[str, np.ndarray],
    path: Path,
    truth: Mapping[str, np.ndarray] | None = None,
    caption: str = "",
) -> None:
    """One PNG: canal points on Sagittal T2, foramina of both sides on Sagittal T1, recesses of each level on Axial T2.

    Points (row → patient mm) are projected onto the slice nearest to them: crosses are located, circles true.
    """
    panels: list[tuple[str, list[str]]] = [
        ("canal, Sagittal T2", [row for row in ROWS if group_of(row) == "spinal"]),
        ("left foramina, Sagittal T1", [row for row in ROWS if row.startswith("left_neural")]),
        ("right foramina, Sagittal T1", [row for row in ROWS if row.startswith("right_neural")]),
    ]
    panels += [
        (f"recesses {level.upper()}, Axial T2", [row for row in ROWS if "subarticular" in row and row.endswith(level)])
        for level in LEVELS
    ]
    figure, axes = plt.subplots(2, 4, figsize=(16, 8.6), facecolor="black")
    for axis, (title, rows) in zip(axes.flat, panels, strict=True):
        axis.axis("off")
        axis.set_title(title, color="white", fontsize=11)
        _panel(axis, study, VIEWS[group_of(rows[0])], rows, located, truth or {})
    figure.suptitle(f"study {study.study_id}  × located  ○ true  {caption}", color="white")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _panel(
    axis: Axes,
    study: Study,
    kind: str,
    rows: list[str],
    located: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
) -> None:
    known = [located[row] for row in rows if row in located] or [truth[row] for row in rows if row in truth]
    if not known:
        return
    reference = np.mean(known, axis=0)
    nearest = nearest_slice(study.of_kind(kind), reference)
    if nearest is None:
        return
    stack, index = nearest
    plane = stack.planes[index]
    height, width = stack.pixels.shape[1:]
    spacing = np.linalg.norm(plane.row_mm) / np.linalg.norm(plane.column_mm)
    axis.imshow(stack.pixels[index], cmap="gray", vmin=0, vmax=255, aspect=float(spacing))
    for points, marker, colour in ((truth, "o", TRUE_COLOUR), (located, "x", LOCATED_COLOUR)):
        for row in rows:
            if row in points:
                at_row, at_column, _ = plane.to_pixel(np.asarray(points[row]))
                axis.plot(at_column, at_row, marker, color=colour, markersize=8, markerfacecolor="none")
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)


def nearest_slice(stacks: tuple[Stack, ...], point: np.ndarray) -> tuple[Stack, int] | None:
    """The stack and slice whose plane is nearest to a point in patient mm; None without any."""
    best: tuple[float, Stack, int] | None = None
    for stack in stacks:
        for index, plane in enumerate(stack.planes):
            distance = abs(float(plane.to_pixel(point)[2]))
            if best is None or distance < best[0]:
                best = (distance, stack, index)
    return (best[1], best[2]) if best else None
