"""Pictures of the rows that cost most: what lies around the annotated landmark."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np

from kernels.lumbar.geometry import Plane
from kernels.lumbar.labels import Unit, group_of
from kernels.lumbar.specs import SeriesKind, SliceChoice, ViewRequest
from kernels.lumbar.study import Study
from kernels.lumbar.views import View, cut
from training.data.tables import TablesError
from training.evaluation.landmarks import VIEW_OF_GROUP
from training.evaluation.locating import level_of
from training.evaluation.overlays import KIND_TITLES, level_text
from training.evaluation.report_figures import crop_figure
from training.evaluation.report_page import Image
from training.evaluation.show import ShowError, known_landmarks, open_study
from training.evaluation.truth import TruthError

# As the recipes cut their crops.
SIZE_MM, SIZE_PX, SLICES = 50.0, 160, 3


def picture_of(data: Path | None, study_id: str, row: str) -> tuple[Image | None, str]:
    """The landmark's surroundings on the middle slice and its neighbours; and what is seen, or why nothing is."""
    if data is None:
        return None, "No picture: the report was made without DATA."
    try:
        split, study = open_study(data, study_id)
        landmarks = known_landmarks(data, split, study)
    except (ShowError, TablesError, TruthError, OSError) as error:
        return None, f"No picture: {error}."
    if not landmarks or row not in landmarks:
        return None, "No picture: the landmark of this row is not annotated, or its image is gone."
    request = request_of(row)
    view = cut(study, request, Unit(), landmarks)
    if view is None:
        return None, f"No picture: the study has no usable {KIND_TITLES[request.series]} series."
    return _drawn(study, view, landmarks[row]), (
        f"{KIND_TITLES[request.series]}, series {view.series_id}: the slice with the outline of the crop, then "
        f"{SIZE_MM:g} mm around the row's landmark (ring: a phantom's true one, else the annotated one) on the nearest "
        "slice and its neighbours."
    )


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


def _drawn(study: Study, view: View, point_mm: np.ndarray) -> Image:
    middle = view.planes[len(view.planes) // 2]
    at_row, at_column, _ = middle.to_pixel(point_mm)
    whole, outline, aspect = _whole(study, view.series_id, middle)
    return crop_figure(whole, outline, aspect, view.pixels, (float(at_row), float(at_column)), SIZE_MM)


def _whole(study: Study, series_id: str, crop: Plane) -> tuple[np.ndarray, np.ndarray, float]:
    """The slice that a crop was cut from, the crop's corners (4, 2) as its rows and columns, and its pixels' aspect."""
    last = SIZE_PX - 1
    corners = np.array([crop.to_patient(row, column) for row, column in ((0, 0), (0, last), (last, last), (last, 0))])
    places = [
        (float(distance), stack, index)
        for stack in study.stacks
        if stack.series_id == series_id
        for index, distance in enumerate(np.abs(stack.to_pixels(corners.mean(0))[:, 2]))
    ]
    _, stack, index = min(places, key=lambda place: place[0])
    plane = stack.planes[index]
    between_rows, between_columns = plane.spacing_mm
    return stack.pixels[index], np.column_stack(plane.to_pixel(corners)[:2]), between_rows / between_columns
