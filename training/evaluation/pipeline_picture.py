"""The kernel's stages on one study as a picture: slices and located landmarks, the crops of one level, the 25 rows.

    python -m training.evaluation.pipeline_picture --data DIR --study ID [--weights DIR] [--level l4_l5] --out FILE.png

Without --weights the true landmarks are drawn, and the rows are the public priors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from kernels.commands import ends_with_a_sentence
from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.inputs.views import View, cut
from kernels.lumbar.labels import LEVELS, ROWS, Unit
from kernels.lumbar.networks.weights import WeightsError, find_manifest, read_manifest
from kernels.lumbar.run.clock import Clock
from training.data.tables import TablesError
from training.evaluation.localiser_findings import Points, level_of
from training.evaluation.overlays import STRIPS, Panel, draw_point, draw_true, level_text, panels, show_slice
from training.evaluation.predictor import Predictor
from training.evaluation.show import ShowError, known_grades, known_landmarks, open_study
from training.evaluation.truth import TruthError
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import RecipeError

INCHES, DPI = (11.0, 5.0), 110
# (left, bottom, width, height) in inches: the four slices, the crops, the table.
SLICES, SLICE_INCHES = ((0.12, 2.4), (2.02, 2.4), (0.12, 0.32), (2.02, 0.32)), 1.82
CROPS, CROP_INCHES = ((4.42, 3.12), (5.52, 3.12), (4.42, 1.79), (5.52, 1.79), (4.42, 0.46)), 1.0
TABLE, NOTES = (8.3, 0.32, 2.55, 3.9), (5.6, 1.18)
FRAME, SHADES = "#d62728", 25
FIELD_MM = {"sagittal": 180.0, "axial": 110.0}
STRIP_TITLES = ("Sagittal T2", "Sagittal T1, left", "Sagittal T1, right", "Axial T2")
SHORT_CONDITIONS = ("left foramen", "left recess", "right foramen", "right recess", "canal")
CROP_TITLES = ("T2, canal", "T1, left", "T1, right", "axial, left", "axial, right")


@dataclass(frozen=True, eq=False)
class Stages:
    """The kernel's results for one study: row → patient mm, the five views of one level as inputs of split_and_global's
    global network, (25, 3) probabilities in the order of labels.ROWS, and row → true severity where known."""

    study: Study
    located: Points
    truth: Points
    crops: tuple[View | None, ...]
    rows: np.ndarray
    severities: dict[str, int]


def run_stages(data: Path, study_id: str, weights: Path | None, level: str) -> Stages:
    """Read, locate, crop and grade.  Raises ShowError, WeightsError, TablesError, RecipeError."""
    split, study = open_study(data, study_id)
    truth = known_landmarks(data, split, study) or {}
    located, rows = truth, np.array([public_priors()[row] for row in ROWS])
    if weights is not None:
        path = find_manifest([weights])
        predicted = Predictor(read_manifest(path), path.parent, torch.device("cpu")).predict(study, Clock(float("inf")))
        located, rows = next((one.points for one in predicted.located.values()), truth), predicted.rows
    if not located:
        raise ShowError(f"nothing is known of study {study_id}: give --weights to locate its landmarks")
    members = load_named("split_and_global", "full").members()
    inputs = next(one.member.inputs for one in members if one.member.unit == "level" and len(one.member.inputs) == 5)
    crops = tuple(cut(study, request, Unit(level), located) for request in inputs)
    return Stages(study, located, truth, crops, rows, known_grades(data, split, study.study_id))


def draw_stages(stages: Stages, level: str, path: Path) -> None:
    """One PNG: slices with landmarks, crops, table."""
    figure = Figure(figsize=INCHES, facecolor="white")
    _heading(figure, 0.12, "1  Read and locate", "landmarks in patient mm")
    _heading(figure, 4.42, f"2  Crop, {level_text(level)}", "50 mm, 5 slices, right sides mirrored")
    _heading(figure, 7.05, "3  Grade and combine", "submission.csv: 25 rows × 3 probabilities")
    found = panels(stages.study, stages.located, {})
    for place, (strip, _, _), title in zip(SLICES, STRIPS, STRIP_TITLES, strict=True):
        axis, own = _axis(figure, *place, SLICE_INCHES, SLICE_INCHES), [one for one in found if one.strip == strip]
        if strip == "recess":
            title, own = f"{title}, {level_text(level)}", [one for one in own if any(level in row for row in one.rows)]
        axis.set_title(title, fontsize=8, pad=3)
        if own:
            _draw_slice(axis, max(own, key=lambda one: len(one.rows)), own, stages)
    for place, title, view in zip(CROPS, CROP_TITLES, stages.crops, strict=True):
        axis = _axis(figure, *place, CROP_INCHES, CROP_INCHES)
        axis.set_title(title, fontsize=8, pad=3)
        if view is not None:
            axis.imshow(view.pixels[len(view.pixels) // 2], cmap="gray", vmin=0, vmax=255)
    notes = [("#c77c00", "× located")] + [("#0090c0", "○ true")] * bool(stages.truth)
    for number, (colour, words) in enumerate(notes + [(FRAME, "□ true grade")] * bool(stages.severities)):
        figure.text(*_share(NOTES[0], NOTES[1] - 0.27 * number), words, fontsize=9, color=colour)
    _draw_table(_axis(figure, *TABLE), stages)
    for left in (4.11, 6.77):
        figure.text(*_share(left, 2.3), "▶", fontsize=15, color="#777777", ha="center", va="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=DPI)
    # Noise compresses badly: fewer shades of each colour halve the file.
    lookup = [round(round(value * SHADES / 255) * 255 / SHADES) for value in range(256)]
    Image.open(drawn).convert("RGB").point(lookup * 3).save(path, optimize=True)


def _draw_slice(axis: Axes, panel: Panel, strip: Sequence[Panel], stages: Stages) -> None:
    """The slice, and every landmark of the strip projected on it."""
    rows = [row for one in strip for row in one.rows]
    centre_mm = np.mean([stages.located[row] for row in rows], axis=0)
    plane = show_slice(axis, panel, centre_mm, FIELD_MM)
    points = [[float(one) for one in plane.to_pixel(np.asarray(stages.located[row]))] for row in rows]
    for row, (at_row, at_column, _) in zip(rows, points, strict=True):
        if row in stages.truth:
            true_row, true_column, _ = plane.to_pixel(np.asarray(stages.truth[row]))
            draw_true(axis, float(true_row), float(true_column), size=8)
        draw_point(axis, at_row, at_column, 0, size=8)
        if panel.strip != "recess":
            text = f"   {level_text(level_of(row))}"
            words = axis.text(at_column, at_row, text, color="white", fontsize=7, va="center")
            words.set_path_effects([withStroke(linewidth=1.5, foreground="black")])


def _draw_table(axis: Axes, stages: Stages) -> None:
    """25 rows by condition and level, darker = more probable; the true severity is framed."""
    axis.imshow(stages.rows, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, name in enumerate(ROWS):
        axis.text(-0.6, row, level_text(level_of(name)), fontsize=7, ha="right", va="center")
        for severity, share in enumerate(stages.rows[row]):
            colour = "white" if share > 0.6 else "black"
            axis.text(severity, row, f"{share:.2f}", fontsize=7, ha="center", va="center", color=colour)
        if (truth := stages.severities.get(name)) is not None:
            axis.add_patch(Rectangle((truth - 0.46, row - 0.42), 0.92, 0.84, fill=False, edgecolor=FRAME, lw=1.3))
    for number, condition in enumerate(SHORT_CONDITIONS):
        axis.text(-1.1, number * len(LEVELS) + 2, condition, fontsize=8, ha="right", va="center")
        if number:
            axis.axhline(number * len(LEVELS) - 0.5, color="black", linewidth=0.8)
    for column, words in enumerate(("normal/mild", "moderate", "severe")):
        axis.text(column, -0.75, words, fontsize=8, ha="center", va="bottom")


def _heading(figure: Figure, left: float, title: str, below: str) -> None:
    figure.text(*_share(left, 4.72), title, fontsize=11, fontweight="bold", va="center")
    figure.text(*_share(left, 4.51), below, fontsize=8, va="center", color="#444444")


def _axis(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    axis = figure.add_axes((*_share(left, bottom), *_share(width, height)))
    axis.set_axis_off()
    return axis


def _share(across: float, up: float) -> tuple[float, float]:
    """Inches as shares of the figure."""
    return across / INCHES[0], up / INCHES[1]


@ends_with_a_sentence("nothing to draw", ShowError, RecipeError, TablesError, TruthError, WeightsError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit code 1, with one sentence, if something is missing."""
    parser = argparse.ArgumentParser(prog="training.evaluation.pipeline_picture", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder in the competition's layout")
    parser.add_argument("--study", required=True, help="the number of a study")
    parser.add_argument("--weights", type=Path, help="a packaged dataset folder; default: true landmarks and priors")
    parser.add_argument("--level", choices=LEVELS, default="l4_l5", help="of the crops")
    parser.add_argument("--out", type=Path, default=Path("pipeline.png"))
    given = parser.parse_args(argv)
    draw_stages(run_stages(given.data, given.study, given.weights, given.level), given.level, given.out)
    sys.stdout.write(f"{given.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
