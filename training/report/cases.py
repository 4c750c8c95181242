"""The rows with the largest loss: their probabilities, and pictures of the annotated and the located landmark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from tqdm import tqdm

from kernels.lumbar.answers.locate import Located
from kernels.lumbar.dicom.geometry import Plane
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.inputs.views import View, cut
from kernels.lumbar.labels import KIND_OF_GROUP, ROWS, SERIES_TEXTS, Unit, group_of
from kernels.lumbar.networks.devices import default_device
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.specs import SeriesKind, SliceChoice, ViewRequest
from kernels.profiles import Profile
from training.data.tables import TablesError
from training.evaluation.landmark_errors import across_slices_mm, in_plane_mm
from training.evaluation.localiser_findings import nearest_slice
from training.evaluation.predictor import Predictor
from training.evaluation.show import ShowError, known_landmarks, open_study
from training.evaluation.truth import TruthError
from training.evaluation.validate import fold_manifest
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import RecipeError
from training.report.figures import Marker, crop_figure
from training.report.numbers import Case, worst
from training.report.predictions import Predictions
from training.runs import RunFolder, UnusableRun

# As the recipes cut their crops.
SIZE_MM, SIZE_PX, SLICES = 50.0, 160, 3
# A point farther from a slice, in gaps between slices, is not shown on it.
NEAR_SLICE = 0.75


@dataclass(frozen=True)
class Picture:
    """Slice and crops around a landmark."""

    image: str | None
    """Data URI."""
    words: str
    """What is shown, or why there is no image."""
    errors: dict[str, str] = field(default_factory=dict)
    """Recipe → localisation error: mm in plane / across the slices."""


class FoldLocalisers:
    """The localisers of finished runs, loaded when a study of their fold is first located."""

    def __init__(self, runs: Path, profile: str, recipes: Sequence[str]) -> None:
        self._runs, self._profile, self._recipes = runs, cast(Profile, profile), recipes
        self._predictors: dict[tuple[str, int], Predictor | None] = {}
        self._located: dict[str, dict[str, Located]] = {}

    def locate(self, study: Study, fold: int) -> dict[str, Located]:
        """Recipe → landmarks by its localisers of the study's fold; without recipes that have no usable ones."""
        if study.study_id not in self._located:
            located: dict[str, Located] = {}
            for recipe in self._recipes:
                if (recipe, fold) not in self._predictors:
                    self._predictors[recipe, fold] = self._load(recipe, fold)
                if predictor := self._predictors[recipe, fold]:
                    located |= predictor.predict(study, Clock(float("inf"))).located
            self._located[study.study_id] = located
        return self._located[study.study_id]

    def _load(self, recipe: str, fold: int) -> Predictor | None:
        """None where a localiser is missing, is not of the recipe as it is now, or cannot be loaded."""
        try:
            folder = RunFolder(self._runs, load_named(recipe, self._profile))
            done, missing = folder.finished(fold, "localiser")
            if not done or missing:
                return None
            predictor = Predictor(fold_manifest(folder, done, fold), folder.root, default_device())
        except (RecipeError, UnusableRun, OSError):
            return None
        return None if predictor.problems else predictor


def worst_cases(own: Predictions, data: Path | None, count: int) -> list[tuple[Case, Picture]]:
    """The rows with the largest loss, with a picture of each where there is one."""
    answers, sources = own.sources.answers, own.sources
    localisers = FoldLocalisers(sources.folder, sources.profile, [run.named for run in sources.runs])
    cases = []
    for case in tqdm(worst(own.labels, own.ensemble, count), desc="worst rows", unit="row", disable=data is None):
        study, fold = answers.studies[case.study], int(answers.folds[case.study])
        cases.append((case, picture_of(data, study, ROWS[case.row], fold, localisers)))
    return cases


def picture_of(data: Path | None, study_id: str, row: str, fold: int, localisers: FoldLocalisers) -> Picture:
    """The row's landmark on the nearest slice and its neighbours, with the points of the fold's localisers."""
    if data is None:
        return Picture(None, "No picture: the report was made without DATA.")
    try:
        split, study = open_study(data, study_id)
        landmarks = known_landmarks(data, split, study)
    except (ShowError, TablesError, TruthError, OSError) as error:
        return Picture(None, f"No picture: {error}.")
    if not landmarks or row not in landmarks:
        return Picture(None, "No picture: the landmark of this row is not annotated, or its image is gone.")
    series = cast(SeriesKind, KIND_OF_GROUP[group_of(row)])
    slices = SliceChoice(by="landmark", count=SLICES)
    request = ViewRequest(series=series, centre=(row,), slices=slices, size_mm=SIZE_MM, size_px=SIZE_PX)
    view = cut(study, request, Unit(), landmarks)
    if view is None:
        return Picture(None, f"No picture: the study has no usable {SERIES_TEXTS[series]} series.")
    located = localisers.locate(study, fold)
    words = (
        f"{SERIES_TEXTS[series]}, series {view.series_id}: the slice with the outline of the crop, then {SIZE_MM:g} mm "
        "around the row's landmark (ring: a phantom's true one, else the annotated one) on the nearest slice and its "
        f"neighbours. {_located_words(located, row)}"
    )
    errors = {name: _error_text(its, row, landmarks[row]) for name, its in located.items()}
    return Picture(_draw(study, view, row, landmarks[row], located), words, errors)


def _located_words(located: Mapping[str, Located], row: str) -> str:
    if not located:
        return "Only this point is drawn: there are no finished localisers of the study's fold."
    words = (
        "Crosses: where the recipes cut their crops, by localisers that never saw the study; the whole slice shows all "
        "of them, a crop those on its slice."
    )
    guessed = [name for name, its in located.items() if row in its.guessed]
    return f"{words} Imputed from the shape of the spine (diamonds): {', '.join(guessed)}." if guessed else words


def _error_text(located: Located, row: str, point_mm: np.ndarray) -> str:
    if row not in located.points:
        return "not located"
    found, group = located.points[row], group_of(row)
    return f"{in_plane_mm(found, point_mm, group):.1f} / {across_slices_mm(found, point_mm, group):.1f}"


def _draw(study: Study, view: View, row: str, point_mm: np.ndarray, located: Mapping[str, Located]) -> str:
    middle = view.planes[len(view.planes) // 2]
    at_row, at_column, _ = middle.to_pixel(point_mm)
    last = SIZE_PX - 1
    own = [stack for stack in study.stacks if stack.series_id == view.series_id]
    source = nearest_slice(own, middle.to_patient(last / 2, last / 2))
    assert source is not None, "the view was cut from a stack of this series"
    plane, pixels = source.stack.planes[source.index], source.stack.pixels[source.index]
    corners = np.array([middle.to_patient(*corner) for corner in ((0, 0), (0, last), (last, last), (last, 0))])
    between_rows, between_columns = plane.spacing_mm
    outline, aspect = np.column_stack(plane.to_pixel(corners)[:2]), between_rows / between_columns
    markers = [
        _marker(name, np.asarray(its.points[row]), plane, view.planes, row in its.guessed)
        for name, its in located.items()
        if row in its.points
    ]
    place = float(at_row), float(at_column)
    return crop_figure(pixels, outline, aspect, view.pixels, place, SIZE_MM, markers)


def _marker(name: str, point_mm: np.ndarray, whole: Plane, crops: Sequence[Plane], guessed: bool) -> Marker:
    """A point on the whole slice, and on the crop of the nearest slice unless it is outside of it."""
    row, column, _ = (float(one) for one in whole.to_pixel(point_mm))
    places = [[float(one) for one in crop.to_pixel(point_mm)] for crop in crops]
    nearest = min(range(len(places)), key=lambda at: abs(places[at][2]))
    gap = abs(float(crops[0].to_pixel(crops[1].to_patient(0, 0))[2])) if len(crops) > 1 else math.inf
    crop_row, crop_column, away = places[nearest]
    visible = abs(away) <= gap * NEAR_SLICE and 0 <= crop_row < SIZE_PX and 0 <= crop_column < SIZE_PX
    return Marker(name, (row, column), (nearest, crop_row, crop_column) if visible else None, guessed)
