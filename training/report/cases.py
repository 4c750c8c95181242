"""Pictures of the rows that cost most: what lies around the annotated landmark, and where graders looked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from kernels.lumbar.answers.locate import Located
from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.inputs.views import View, cut
from kernels.lumbar.labels import Unit, group_of
from kernels.lumbar.specs import SeriesKind, SliceChoice, ViewRequest
from training.data.tables import TablesError
from training.evaluation.landmark_errors import VIEW_OF_GROUP, across_slices_mm, in_plane_mm
from training.evaluation.localiser_findings import level_of
from training.evaluation.overlays import KIND_TITLES, level_text
from training.evaluation.show import ShowError, known_landmarks, open_study
from training.evaluation.truth import TruthError
from training.report.figures import Marker, crop_figure
from training.report.localisation import Looking
from training.report.page import ReportImage

# As the recipes cut their crops.
SIZE_MM, SIZE_PX, SLICES = 50.0, 160, 3
# A point farther from a slice, in gaps between slices, is not shown on it.
NEAR_SLICE = 0.75


@dataclass(frozen=True)
class Picture:
    """A landmark's surroundings."""

    image: ReportImage | None
    words: str
    """What is seen, or why nothing is."""
    misses: dict[str, str] = field(default_factory=dict)
    """Recipe → how far from the landmark it looked: mm in plane / across the slices."""


def picture_of(data: Path | None, study_id: str, row: str, fold: int, looking: Looking) -> Picture:
    """The landmark on the middle slice and its neighbours, with what its fold's localisers say."""
    if data is None:
        return Picture(None, "No picture: the report was made without DATA.")
    try:
        split, study = open_study(data, study_id)
        landmarks = known_landmarks(data, split, study)
    except (ShowError, TablesError, TruthError, OSError) as error:
        return Picture(None, f"No picture: {error}.")
    if not landmarks or row not in landmarks:
        return Picture(None, "No picture: the landmark of this row is not annotated, or its image is gone.")
    request = request_of(row)
    view = cut(study, request, Unit(), landmarks)
    if view is None:
        return Picture(None, f"No picture: the study has no usable {KIND_TITLES[request.series]} series.")
    looked = looking.at(study, fold)
    found = {name: its.points[row] for name, its in looked.items() if row in its.points}
    image = _drawn(study, view, landmarks[row], found)
    words = (
        f"{KIND_TITLES[request.series]}, series {view.series_id}: the slice with the outline of the crop, then "
        f"{SIZE_MM:g} mm around the row's landmark (ring: a phantom's true one, else the annotated one) on the nearest "
        f"slice and its neighbours. {_looked_words(looked, row)}"
    )
    return Picture(image, words, {name: _miss(name, looked[name], row, landmarks[row]) for name in looked})


def _looked_words(looked: Mapping[str, Located], row: str) -> str:
    if not looked:
        return "Only this point is drawn: no localisers of the study's fold are there to say where graders looked."
    words = (
        "Crosses: where the recipes' graders looked, by localisers that never saw the study; the whole slice shows all "
        "of them, a crop those on its slice."
    )
    guessed = [name for name, its in looked.items() if row in its.guessed]
    return f"{words} Guessed from the shape of the spine: {', '.join(guessed)}." if guessed else words


def _miss(name: str, located: Located, row: str, point: np.ndarray) -> str:
    if row not in located.points:
        return "not located"
    found, group = located.points[row], group_of(row)
    return f"{in_plane_mm(found, point, group):.1f} / {across_slices_mm(found, point, group):.1f}"


def request_of(row: str) -> ViewRequest:
    """What is cut for a row."""
    return ViewRequest(
        series=cast(SeriesKind, VIEW_OF_GROUP[group_of(row)]),
        centre=(row,),
        slices=SliceChoice(by="landmark", count=SLICES),
        size_mm=SIZE_MM,
        size_px=SIZE_PX,
    )


def row_text(row: str) -> str:
    """left neural foraminal narrowing L4/L5 of its row name."""
    level = level_of(row)
    return f"{row.removesuffix(f'_{level}').replace('_', ' ')} {level_text(level)}"


def _drawn(study: Study, view: View, point_mm: np.ndarray, looked: Mapping[str, np.ndarray]) -> ReportImage:
    middle = view.planes[len(view.planes) // 2]
    at_row, at_column, _ = middle.to_pixel(point_mm)
    plane, pixels = _whole(study, view.series_id, middle)
    last = SIZE_PX - 1
    corners = np.array([middle.to_patient(row, column) for row, column in ((0, 0), (0, last), (last, last), (last, 0))])
    between_rows, between_columns = plane.spacing_mm
    outline, aspect = np.column_stack(plane.to_pixel(corners)[:2]), between_rows / between_columns
    marks = [_mark(name, np.asarray(found), plane, view.planes) for name, found in looked.items()]
    place = float(at_row), float(at_column)
    return crop_figure(pixels, outline, aspect, view.pixels, place, SIZE_MM, marks)


def _mark(name: str, point: np.ndarray, whole: Plane, crops: Sequence[Plane]) -> Marker:
    """A point on the whole slice, and on the crop whose slice it is nearest to, unless it lies beside all of them."""
    row, column, _ = (float(one) for one in whole.to_pixel(point))
    places = [[float(one) for one in crop.to_pixel(point)] for crop in crops]
    nearest = min(range(len(places)), key=lambda at: abs(places[at][2]))
    gap = abs(float(crops[0].to_pixel(crops[1].to_patient(0, 0))[2])) if len(crops) > 1 else math.inf
    its_row, its_column, away = places[nearest]
    seen = abs(away) <= gap * NEAR_SLICE and 0 <= its_row < SIZE_PX and 0 <= its_column < SIZE_PX
    return Marker(name, (row, column), (nearest, its_row, its_column) if seen else None)


def _whole(study: Study, series_id: str, crop: Plane) -> tuple[Plane, np.ndarray]:
    """The slice that a crop was cut from, and its pixels."""
    middle = (SIZE_PX - 1) / 2
    centre = crop.to_patient(middle, middle)
    places = [
        (float(distance), stack, index)
        for stack in study.stacks
        if stack.series_id == series_id
        for index, distance in enumerate(np.abs(stack.to_pixels(centre)[:, 2]))
    ]
    _, stack, index = min(places, key=lambda place: place[0])
    return stack.planes[index], stack.pixels[index]
