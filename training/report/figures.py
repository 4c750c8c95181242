"""The report's figures: reliability curves, scores by fold, the gain curve, and crops around a landmark.

Each is a data URI: curves as SVG, crops as PNG.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.patheffects import withStroke

from kernels.lumbar.labels import GROUPS, SEVERITIES
from training.ensemble.search import CurvePoint
from training.evaluation.metric import Score
from training.evaluation.overlays import TRUE_COLOUR, draw_point, draw_true, route_handle
from training.report.numbers import Bin, reliability

# Okabe and Ito's colours, distinguishable to the colour-blind; shapes repeat the distinction.
COLOURS = ("#0072b2", "#e69f00", "#cc3d00", "#009e73", "#cc79a7", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Columns of the pictures of a row: readable on a telephone.
CROP_COLUMNS = 2
# Space that a number needs beside a point.
NUMBER_POINTS = 15
# Bins of fewer rows are drawn hollow.
FEW = 10
STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "report"}


def reliability_figure(labels: np.ndarray, probabilities: np.ndarray, before: np.ndarray | None = None) -> str:
    """Observed over predicted share of each severity by condition group, and beneath it how many rows each bin has.

    Labels (N, 25), negative = missing; probabilities (N, 25, 3), and dashed those `before` a change.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, len(GROUPS), figsize=(9.4, 4.9), sharex=True, squeeze=False, height_ratios=(3, 1), layout="constrained"
        )
        for column, group in enumerate(GROUPS):
            bins = [reliability(labels, probabilities, group, severity) for severity in SEVERITIES]
            _draw_reliability(axes[0, column], axes[1, column], bins)
            if before is not None:
                _draw_before(axes[0, column], [reliability(labels, before, group, severity) for severity in SEVERITIES])
            axes[0, column].set_title(group)
        axes[0, 0].set_ylabel("observed share")
        axes[1, 0].set_ylabel("rows (log)")
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, frameon=False, loc="outside upper center", ncols=len(names))
        return _svg(figure)


def _draw_reliability(curve: Axes, counts: Axes, bins: Sequence[Sequence[Bin]]) -> None:
    curve.plot([0, 1], [0, 1], color="#8c959f", linewidth=1, linestyle=":")
    for severity, found, colour, marker in zip(SEVERITIES, bins, COLOURS, MARKERS, strict=False):
        style = {"color": colour, "marker": marker}
        for hollow in (True, False):
            some = [one for one in found if (one.rows < FEW) == hollow]
            look = (
                {"linestyle": "none", "markerfacecolor": "white"} if hollow else {"label": severity.replace("_", "/")}
            )
            shares = [one.observed for one in some]
            curve.plot([one.predicted for one in some], shares, markersize=5, linewidth=1.2, **style, **look)  # type: ignore[arg-type]
        rows = [one.rows for one in found]
        counts.plot([one.predicted for one in found], rows, markersize=3.5, linewidth=0.8, **style)  # type: ignore[arg-type]
    curve.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03))
    counts.set(yscale="log", xlabel="predicted probability", ylim=(0.7, None))


def _draw_before(curve: Axes, bins: Sequence[Sequence[Bin]]) -> None:
    for found, colour in zip(bins, COLOURS, strict=False):
        some = [one for one in found if one.rows >= FEW]
        shares = [one.observed for one in some]
        curve.plot([one.predicted for one in some], shares, color=colour, linewidth=1, linestyle="--", alpha=0.6)


def folds_figure(scores: Mapping[str, Mapping[int, Score]]) -> str:
    """Name → fold → score: a column of markers for each fold."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.4, 3.4), layout="constrained")
        folds = sorted({fold for its in scores.values() for fold in its})
        for number, (name, its) in enumerate(scores.items()):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            line = {"linewidth": 1.6 if number == 0 else 0.7, "color": colour, "marker": marker, "markersize": 5}
            axis.plot(list(its), [one.final for one in its.values()], label=name, **line)  # type: ignore[arg-type]
        axis.set_xticks(folds, [f"fold {fold}" for fold in folds])
        axis.set_ylabel("score (lower is better)")
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return _svg(figure)


def gain_figure(steps: Sequence[CurvePoint]) -> str:
    """The score after each member, by its number; the priors before the first lie far above and are left out."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.4, 3.6), layout="constrained")
        seconds, scores = [step.seconds for step in steps], [step.score for step in steps]
        axis.step(seconds, scores, where="post", color=COLOURS[0], linewidth=1.4)
        axis.plot(seconds, scores, linestyle="none", marker="o", color=COLOURS[0], markersize=4)
        axis.margins(x=0.06, y=0.15)
        axis.set(xlabel="seconds a study", ylabel="score (lower is better)")
        axis.grid(axis="y", color="#e3e7eb", linewidth=0.7)
        figure.draw_without_rendering()  # settles where points lie
        places = axis.transData.transform(np.column_stack([seconds, scores]))
        for at in apart(places, NUMBER_POINTS * figure.dpi / 72):
            place = seconds[at], scores[at]
            number = axis.annotate(str(at + 1), place, (4, 4), textcoords="offset points", fontsize=8)
            number.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        return _svg(figure)


def apart(places: np.ndarray, distance: float) -> list[int]:
    """Which places (N, 2) are labelled: the first, the last, and each at least `distance` from all labelled ones."""
    kept: list[int] = []
    for at in dict.fromkeys([0, len(places) - 1, *range(len(places))]):
        if 0 <= at < len(places) and all(np.hypot(*(places[at] - places[other])) >= distance for other in kept):
            kept.append(at)
    return sorted(kept)


@dataclass(frozen=True)
class Marker:
    """A located point in whole-slice and crop pixels."""

    name: str
    whole: tuple[float, float]
    """Row and column in the whole slice, onto which the point is projected."""
    crop: tuple[int, float, float] | None
    """Number of the crop, and row and column in it; None where no crop shows the point."""
    guessed: bool = False
    """Whether it was imputed from the shape of the spine."""


def crop_figure(
    whole: np.ndarray,
    outline: np.ndarray,
    aspect: float,
    crops: np.ndarray,
    mark: tuple[float, float],
    size_mm: float,
    located: Sequence[Marker] = (),
) -> str:
    """A slice (H, W), its pixels `aspect` times as high as wide, with the outline (4, 2) of the crop in its rows and
    columns; then the crops (slice, H, W) of size_mm, the middle one ringed at `mark`; crosses at `located` points."""
    with plt.rc_context(STYLE):
        lines = -(-(len(crops) + 1) // CROP_COLUMNS)
        size = (2.3 * CROP_COLUMNS, 2.5 * lines + 0.3)
        figure, grid = plt.subplots(lines, CROP_COLUMNS, figsize=size, squeeze=False, layout="constrained")
        axes = list(grid.flat)
        axes[0].imshow(whole, cmap="gray", vmin=0, vmax=255, aspect=aspect)
        axes[0].add_patch(Polygon(outline[:, ::-1], fill=False, edgecolor=TRUE_COLOUR, linewidth=1.3))
        axes[0].set_title("whole slice")
        for number, (axis, crop) in enumerate(zip(axes[1:], crops, strict=False)):
            axis.imshow(crop, cmap="gray", vmin=0, vmax=255)
            beside = number - len(crops) // 2
            axis.set_title(f"{beside:+d} slice" if beside else f"nearest, {size_mm:g} mm wide")
            if beside == 0:
                draw_true(axis, *mark, size=13)
        _draw_located(axes, located)
        for axis in axes:
            axis.set_axis_off()
        if located:
            handles = [route_handle(number, one.name) for number, one in enumerate(located)]
            figure.legend(handles=handles, loc="outside lower center", frameon=False, ncols=2, handletextpad=0.2)
        return _data_uri(figure, "png", dpi=110)


def _draw_located(axes: Sequence[Axes], located: Sequence[Marker]) -> None:
    """Each point's mark, on the whole slice and on the crop that shows it."""
    for axis in axes:
        axis.set_autoscale_on(False)
    for number, one in enumerate(located):
        draw_point(axes[0], *one.whole, number, one.guessed, size=7)
        if one.crop is not None:
            panel, row, column = one.crop
            draw_point(axes[panel + 1], row, column, number, one.guessed)


def _svg(figure: Figure) -> str:
    return _data_uri(figure, "svg+xml", format="svg", metadata={"Date": None})


def _data_uri(figure: Figure, kind: str, **options: object) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, **options)  # type: ignore[arg-type]
    plt.close(figure)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
