"""Pictures of located and true landmarks on the slices that show them, with the grades of their rows.

The marks, at the end, are those of every picture of landmarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.path import Path as Shape
from matplotlib.patheffects import withStroke

from kernels.lumbar.answers.locate import Located
from kernels.lumbar.dicom.geometry import Plane, body_plane
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.labels import LEVELS, ROWS, SERIES_TEXTS
from training.evaluation.localiser_findings import Points, level_of, nearest_slice

# Strips of panels: title, part of the row names, series kinds in order of preference.
STRIPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("canal", "spinal_canal", ("sagittal_t2", "sagittal_t1")),
    ("left foramen", "left_neural", ("sagittal_t1", "sagittal_t2")),
    ("right foramen", "right_neural", ("sagittal_t1", "sagittal_t2")),
    ("recess", "subarticular", ("axial_t2",)),
)
TRUE_COLOUR = "#35d0ff"
ROUTE_COLOURS = ("#ffb000", "#ff5fa2", "#7ee04b", "#c59bff", "#ff6b3d", "#fff27a")
# Marks are open, so that they hide nothing; of a cross this share of its radius.
FREE = 0.5
# Arms, and the direction (degrees) of the first one: what tells routes apart for the colour-blind, too.
ARMS = ((4, 45), (4, 0), (3, 90), (3, 270), (2, 0), (6, 0))
RING: dict[str, Any] = {"marker": "o", "color": TRUE_COLOUR, "markerfacecolor": "none", "linestyle": "none"}
GUESSED: dict[str, Any] = {"marker": "D", "markerfacecolor": "none", "linestyle": "none", "markeredgewidth": 1.0}
GRADE_TEXTS = ("normal", "moderate", "severe")
RIGHT_COLOUR, WRONG_COLOUR, UNJUDGED_COLOUR = "#8be28b", "#ff8a80", "#e8e8e8"
LINE_POINTS = 8
FIELD_MM = {"sagittal": 210.0, "axial": 110.0}
COLUMNS, PANEL_INCHES = 5, 3.4
FAINTEST = 0.35


@dataclass(frozen=True)
class Grades:
    """What a study's rows are graded as."""

    answers: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Row → (3,) probabilities, of rows that a network answered."""
    truth: Mapping[str, int] = field(default_factory=dict)
    """Row → true severity, where it is known."""

    def text(self, row: str) -> tuple[str, str]:
        """The most probable grade with its probability, and the true one; and the colour to write it in."""
        answer, true = self.answers.get(row), self.truth.get(row)
        if answer is None:
            return ("" if true is None else f"true: {GRADE_TEXTS[true]}"), UNJUDGED_COLOUR
        best = int(np.argmax(answer))
        words = f"{GRADE_TEXTS[best]} {answer[best]:.0%}"
        if true is None:
            return words, UNJUDGED_COLOUR
        if best == true:
            # Not "right", which is a side.
            return f"{words} (correct)", RIGHT_COLOUR
        return f"{words} (is {GRADE_TEXTS[true]})", WRONG_COLOUR


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
        """The levels on the slice, its file, and how far it lies to the patient's side of the stack's middle."""
        levels = " ".join(level_text(level) for level in LEVELS if any(row.endswith(level) for row in self.rows))
        image = f"{self.stack.series_id}, image {self.stack.instances[self.index]}"
        if "foramen" in self.strip and not self.stack.assumed:  # nothing else in the picture shows the side
            centres_mm = self.stack.centres_mm[:, 0]
            leftwards_mm = centres_mm[self.index] - centres_mm.mean()
            image += f", {abs(leftwards_mm):.0f} mm to the {'left' if leftwards_mm > 0 else 'right'}"
        return f"{self.strip} {levels}\n{SERIES_TEXTS[self.stack.kind]}, {image}"


def level_text(level: str) -> str:
    """L4/L5 of l4_l5."""
    return level.upper().replace("_", "/")


def draw_located(
    study: Study,
    routes: Mapping[str, Located],
    path: Path,
    truth: Points | None = None,
    caption: str = "",
    grades: Grades | None = None,
    truth_name: str = "true",
) -> None:
    """One PNG of the landmarks of each route, in a colour each, and of the true ones if known, with their grades.

    Each landmark is drawn on the slice nearest to the true point (else to the mean of the located ones).  A located
    point nearest to another slice is labelled with the offset (+1 = the next slice), one route's points with their
    confidence.  A point outside of the picture is drawn on its border.
    """
    found = panels(study, truth or {}, routes)
    lines = max(1, -(-len(found) // COLUMNS))
    title_inches = 0.25 * (1 + caption.count("\n"))
    size = (COLUMNS * PANEL_INCHES, lines * (PANEL_INCHES + 0.5) + 0.5 + title_inches)
    figure, axes = plt.subplots(lines, COLUMNS, figsize=size, facecolor="black", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, panel in zip(axes.flat, found, strict=False):
        _draw_panel(axis, panel, routes, truth or {}, grades or Grades())
    figure.suptitle(f"study {study.study_id}  {caption}", color="white", fontsize=11, wrap=True)
    figure.legend(
        handles=[*_legend(routes), *([true_handle(truth_name)] if truth is not None else [])],
        loc="lower center",
        ncols=len(routes) + 3,
        labelcolor="white",
        facecolor="black",
        edgecolor="black",
    )
    figure.tight_layout(rect=(0, 0.35 / size[1], 1, 1 - title_inches / size[1]), h_pad=2.5)
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
                # The median, so that one point far off leaves the others in the picture.
                panel = Panel(strip, place.stack, place.index, np.median(same, axis=0))
                own.setdefault((id(place.stack), place.index), panel).rows.append(row)
        found += sorted(own.values(), key=lambda panel: panel.stack.positions_mm[panel.index])
    return found


def _mean_point(row: str, routes: Mapping[str, Located]) -> np.ndarray | None:
    """Mean of the routes' points, without imputed ones if there are others."""
    known = [one for one in routes.values() if row in one.points]
    known = [one for one in known if row not in one.guessed] or known
    return np.mean([one.points[row] for one in known], axis=0) if known else None


def _draw_panel(axis: Axes, panel: Panel, routes: Mapping[str, Located], truth: Points, grades: Grades) -> None:
    plane = show_slice(axis, panel, panel.centre_mm, FIELD_MM)
    axis.set_title(panel.title, color="white", fontsize=8)
    for row in panel.rows:
        if row in truth:
            at_row, at_column, _ = plane.to_pixel(np.asarray(truth[row]))
            draw_true(axis, float(at_row), float(at_column))
        for number, located in enumerate(routes.values()):
            if row in located.points:
                words = _draw_point(axis, panel, row, located, number, with_confidence=len(routes) == 1)
                colour = ROUTE_COLOURS[number % len(ROUTE_COLOURS)]
                _write(axis, panel, located.points[row], words, colour, -LINE_POINTS * (number + 1) - 1)
        known = truth.get(row, _mean_point(row, routes))
        if known is not None:
            words, colour = grades.text(row)
            _write(axis, panel, known, words, colour, 1)
            _write(axis, panel, known, _name(row), "white", 1 + LINE_POINTS if words else 4)


def show_slice(axis: Axes, panel: Panel, centre_mm: np.ndarray, field_mm: Mapping[str, float]) -> Plane:
    """Draw the panel's slice, with a field of view by body plane around a point (3,) mm; returns its plane."""
    plane = panel.stack.planes[panel.index]
    between_rows, between_columns = plane.spacing_mm
    axis.imshow(panel.stack.pixels[panel.index], cmap="gray", vmin=0, vmax=255, aspect=between_rows / between_columns)
    half_mm = field_mm[body_plane(panel.stack.kind)] / 2
    last = np.array(panel.stack.pixels.shape[1:]) - 1
    row, column = np.clip([float(one) for one in plane.to_pixel(centre_mm)[:2]], 0, last).tolist()
    axis.set_xlim(column - half_mm / between_columns, column + half_mm / between_columns)
    axis.set_ylim(row + half_mm / between_rows, row - half_mm / between_rows)
    return plane


def _draw_point(axis: Axes, panel: Panel, row: str, located: Located, number: int, with_confidence: bool) -> str:
    """The mark of a route's point, fainter with less confidence, or that of an imputed point; returns its label."""
    stack, point = panel.stack, np.asarray(located.points[row])
    at_row, at_column, _ = stack.planes[panel.index].to_pixel(point)
    confidence, guessed = located.confidence.get(row), row in located.guessed
    alpha = 1.0 if guessed or confidence is None else FAINTEST + (1 - FAINTEST) * confidence
    draw_point(axis, float(at_row), float(at_column), number, guessed, alpha=alpha)
    words = ["imputed"] if guessed else []
    if confidence is not None and with_confidence and not guessed:
        words = [f"{confidence:.2f}"]
    beside = int(np.abs(stack.to_pixels(point)[:, 2]).argmin()) - panel.index
    return " ".join([*words, f"{beside:+d} slice"] if beside else words)


def _write(axis: Axes, panel: Panel, point: np.ndarray, words: str, colour: str, above: float) -> None:
    """Text beside a point; on axial slices away from the middle, so that the sides' labels do not overlap."""
    if not words:
        return
    plane, limits = panel.stack.planes[panel.index], axis.get_xlim()
    at_row, at_column, _ = (float(one) for one in plane.to_pixel(np.asarray(point)))
    is_beyond = at_column > max(limits)
    outwards = is_beyond or (panel.strip == "recess" and at_column < sum(limits) / 2)
    at_column, at_row = _shown(axis, at_row, at_column)
    text = axis.annotate(
        words,
        (at_column, at_row),
        (-7 if outwards else 7, above),
        textcoords="offset points",
        ha="right" if outwards else "left",
        color=colour,
        fontsize=7,
    )
    text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
    text.set_in_layout(False)  # long words would shrink all pictures


def _name(row: str) -> str:
    side = f"{row.split('_')[0]} " if "subarticular" in row else ""
    return side + level_text(level_of(row))


def _legend(routes: Mapping[str, Located]) -> Sequence[Line2D]:
    handles = [route_handle(number, name) for number, name in enumerate(routes)]
    return [*handles, guessed_handle()] if any(located.guessed for located in routes.values()) else handles


def cross(number: int) -> Shape:
    """The mark of the points of a route: arms that leave the middle free."""
    count, first_deg = ARMS[number % len(ARMS)]
    angles = np.radians(first_deg + np.arange(count) * 360 / count)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (arms, 2)
    ends = np.stack([FREE * directions, directions], axis=1).reshape(-1, 2)
    return Shape(ends, [Shape.MOVETO, Shape.LINETO] * count)


def route_style(number: int, guessed: bool = False) -> dict[str, Any]:
    """How the points of a route are drawn: a colour and a shape each; imputed ones are open diamonds."""
    colour = {"color": ROUTE_COLOURS[number % len(ROUTE_COLOURS)]}
    if guessed:
        return GUESSED | colour
    return {"marker": cross(number), "markeredgewidth": 1.6, "linestyle": "none"} | colour


def draw_true(axis: Axes, row: float, column: float, size: float = 11.0) -> None:
    """A ring at a true or annotated point."""
    axis.plot(*_shown(axis, row, column), markersize=size, **RING)


def draw_point(
    axis: Axes, row: float, column: float, number: int, guessed: bool = False, size: float = 14.0, alpha: float = 1.0
) -> None:
    """The mark of a point of route `number`; `alpha`: fainter with less confidence."""
    size = 0.55 * size if guessed else size
    axis.plot(*_shown(axis, row, column), markersize=size, alpha=alpha, **route_style(number, guessed))


def _shown(axis: Axes, row: float, column: float) -> tuple[float, float]:
    """Column and row; of a point outside of what the axis shows, the nearest place on its border."""
    limits = sorted(axis.get_xlim()), sorted(axis.get_ylim())
    column, row = (min(max(float(one), low), high) for one, (low, high) in zip((column, row), limits, strict=True))
    return column, row


def true_handle(label: str = "true") -> Line2D:
    """For a legend."""
    return Line2D([], [], label=label, **RING)


def route_handle(number: int, label: str) -> Line2D:
    """For a legend."""
    return Line2D([], [], label=label, markersize=10, **route_style(number))


def guessed_handle(label: str = "imputed from the shape of the spine") -> Line2D:
    """For a legend."""
    return Line2D([], [], label=label, **GUESSED | {"color": "#8c959f"})
