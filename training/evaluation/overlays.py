"""Pictures of located and true landmarks on the slices that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from kernels.lumbar.answers.locate import Located
from kernels.lumbar.dicom.geometry import Plane, body_plane
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.labels import LEVELS, ROWS, SERIES_KINDS
from training.evaluation.localiser_findings import Points, level_of, nearest_slice

# Strips of panels: title, part of the row names, series kinds in order of preference.
STRIPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("canal", "spinal_canal", ("sagittal_t2", "sagittal_t1")),
    ("left foramen", "left_neural", ("sagittal_t1", "sagittal_t2")),
    ("right foramen", "right_neural", ("sagittal_t1", "sagittal_t2")),
    ("recess", "subarticular", ("axial_t2",)),
)
KIND_TITLES = {kind: title for title, kind in SERIES_KINDS.items()}
TRUE_COLOUR = "#35d0ff"
ROUTE_COLOURS = ("#ffb000", "#ff5fa2", "#7ee04b", "#c59bff", "#ff6b3d", "#fff27a")
FIELD_MM = {"sagittal": 210.0, "axial": 110.0}
COLUMNS, PANEL_INCHES = 5, 3.4
FAINTEST = 0.35


@dataclass(frozen=True, eq=False)
class Panel:
    """A slice, and the landmarks drawn on it."""

    strip: str
    stack: Stack
    index: int
    centre_mm: np.ndarray
    """(3,) centre of the picture."""
    rows: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The levels on the slice, and its file."""
        levels = " ".join(level_text(level) for level in LEVELS if any(row.endswith(level) for row in self.rows))
        image = f"{self.stack.series_id}, image {self.stack.instances[self.index]}"
        return f"{self.strip} {levels}\n{KIND_TITLES[self.stack.kind]}, {image}"


def level_text(level: str) -> str:
    """L4/L5 of l4_l5."""
    return level.upper().replace("_", "/")


def draw_located(
    study: Study, routes: Mapping[str, Located], path: Path, truth: Points | None = None, caption: str = ""
) -> None:
    """One PNG of the landmarks of each route, in a colour each, and of the true ones if known.

    Each landmark is drawn on the slice nearest to the true point (else to the mean of the located ones).  A located
    point nearest to another slice is labelled with the offset (+1 = the next slice).
    """
    found = panels(study, truth or {}, routes)
    lines = max(1, -(-len(found) // COLUMNS))
    size = (COLUMNS * PANEL_INCHES, lines * (PANEL_INCHES + 0.35) + 0.9)
    figure, axes = plt.subplots(lines, COLUMNS, figsize=size, facecolor="black", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, panel in zip(axes.flat, found, strict=False):
        _draw_panel(axis, panel, routes, truth or {})
    figure.suptitle(f"study {study.study_id}  {caption}", color="white", fontsize=12)
    figure.legend(
        handles=_legend(routes, truth is not None),
        loc="lower center",
        ncols=len(routes) + 3,
        labelcolor="white",
        facecolor="black",
        edgecolor="black",
    )
    figure.tight_layout(rect=(0, 0.35 / size[1], 1, 1), h_pad=2.5)
    figure.savefig(path, dpi=90, facecolor="black")
    plt.close(figure)


def panels(study: Study, truth: Points, routes: Mapping[str, Located]) -> list[Panel]:
    """The slices to draw, by strip and in the order of the stack; each row is in one panel."""
    found: list[Panel] = []
    for strip, text, kinds in STRIPS:
        stacks = next((study.of_kind(kind) for kind in kinds if study.of_kind(kind)), ())
        points = {row: truth.get(row, _mean_point(row, routes)) for row in ROWS if text in row}
        known = {row: np.asarray(point) for row, point in points.items() if point is not None}
        own: dict[tuple[int, int], Panel] = {}
        for row, point in known.items():
            if (place := nearest_slice(stacks, point)) is not None:
                same = [
                    other for name, other in known.items() if kinds[0] != "axial_t2" or name.endswith(level_of(row))
                ]
                panel = Panel(strip, place.stack, place.index, np.mean(same, axis=0))
                own.setdefault((id(place.stack), place.index), panel).rows.append(row)
        found += sorted(own.values(), key=lambda panel: panel.stack.positions_mm[panel.index])
    return found


def _mean_point(row: str, routes: Mapping[str, Located]) -> np.ndarray | None:
    """Mean of the routes' points, without imputed ones if there are others."""
    known = [one for one in routes.values() if row in one.points]
    known = [one for one in known if row not in one.guessed] or known
    return np.mean([one.points[row] for one in known], axis=0) if known else None


def _draw_panel(axis: Axes, panel: Panel, routes: Mapping[str, Located], truth: Points) -> None:
    plane = show_slice(axis, panel, panel.centre_mm, FIELD_MM)
    axis.set_title(panel.title, color="white", fontsize=8)
    for row in panel.rows:
        if row in truth:
            at_row, at_column, _ = plane.to_pixel(np.asarray(truth[row]))
            axis.plot(at_column, at_row, "o", color=TRUE_COLOUR, markersize=11, markerfacecolor="none")
            _write(axis, panel, row, truth[row], _name(row), "white", 5)
        for number, (colour, located) in enumerate(zip(_colours(routes), routes.values(), strict=True)):
            if row in located.points:
                words = _draw_point(axis, panel, row, located, colour, with_confidence=len(routes) == 1)
                _write(axis, panel, row, located.points[row], words, colour, -9 * (number + 1))
                if row not in truth and number == 0:
                    _write(axis, panel, row, located.points[row], _name(row), "white", 5)


def show_slice(axis: Axes, panel: Panel, centre_mm: np.ndarray, field_mm: Mapping[str, float]) -> Plane:
    """Draw the panel's slice, with a field of view by body plane around a point (3,) mm; returns its plane."""
    plane = panel.stack.planes[panel.index]
    between_rows, between_columns = plane.spacing_mm
    axis.imshow(panel.stack.pixels[panel.index], cmap="gray", vmin=0, vmax=255, aspect=between_rows / between_columns)
    half_mm = field_mm[body_plane(panel.stack.kind)] / 2
    row, column = (float(one) for one in plane.to_pixel(centre_mm)[:2])
    axis.set_xlim(column - half_mm / between_columns, column + half_mm / between_columns)
    axis.set_ylim(row + half_mm / between_rows, row - half_mm / between_rows)
    return plane


def _draw_point(axis: Axes, panel: Panel, row: str, located: Located, colour: str, with_confidence: bool) -> str:
    """A filled cross, fainter with less confidence, or a hollow one for an imputed point; returns its label."""
    stack, point = panel.stack, np.asarray(located.points[row])
    at_row, at_column, _ = stack.planes[panel.index].to_pixel(point)
    confidence, guessed = located.confidence.get(row), row in located.guessed
    alpha = 1.0 if guessed or confidence is None else FAINTEST + (1 - FAINTEST) * confidence
    inside = "none" if guessed else colour
    axis.plot(at_column, at_row, "X", color=colour, markerfacecolor=inside, markersize=8, alpha=alpha)
    words = [] if confidence is None or guessed or not with_confidence else [f"{confidence:.2f}"]
    beside = int(np.abs(stack.to_pixels(point)[:, 2]).argmin()) - panel.index
    return " ".join([*words, f"{beside:+d} slice"] if beside else words)


def _write(axis: Axes, panel: Panel, row: str, point: np.ndarray, words: str, colour: str, above: float) -> None:
    """Text beside a point; on axial slices away from the midline, so that the sides' labels do not overlap."""
    at_row, at_column, _ = panel.stack.planes[panel.index].to_pixel(np.asarray(point))
    outwards = panel.strip == "recess" and row.startswith("right_")
    text = axis.annotate(
        words,
        (float(at_column), float(at_row)),
        (-7 if outwards else 7, above),
        textcoords="offset points",
        ha="right" if outwards else "left",
        color=colour,
        fontsize=7,
    )
    text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])


def _name(row: str) -> str:
    side = f"{row.split('_')[0]} " if "subarticular" in row else ""
    return side + level_text(level_of(row))


def _colours(routes: Mapping[str, Located]) -> list[str]:
    return [ROUTE_COLOURS[number % len(ROUTE_COLOURS)] for number in range(len(routes))]


def _legend(routes: Mapping[str, Located], with_truth: bool) -> Sequence[Line2D]:
    style = {"marker": "X", "linestyle": "none", "markersize": 8}
    handles = [
        Line2D([], [], color=colour, label=name, **style)  # type: ignore[arg-type]
        for name, colour in zip(routes, _colours(routes), strict=True)
    ]
    if any(located.guessed for located in routes.values()):
        handles.append(Line2D([], [], color="white", markerfacecolor="none", label="guessed", **style))  # type: ignore[arg-type]
    if with_truth:
        handles.append(
            Line2D([], [], color=TRUE_COLOUR, marker="o", linestyle="none", markerfacecolor="none", label="true")
        )
    return handles
