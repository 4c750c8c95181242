"""Label points that cannot be right, named before training: outside of their image, sides or levels exchanged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.lumbar.labels import CONDITIONS, LEVELS, ROW_PLACES, ROWS, mirrored
from kernels.lumbar.problems import Problem, summary
from kernels.lumbar.run.submission import replace_text
from training.data.external import image_size
from training.data.problem_table import as_csv
from training.data.tables import Tables

# Annotators click between pixels, and at most on the border.
BEYOND_PX = 1.0
# A left point lies more to the left than the right one of its level, even in a rotated or bent spine.
CONTRARY_SIDES_MM = 2.0
# From one level to the next; discs of L5/S1 are the steepest.
LEAST_STEP_MM, LARGEST_STEP_MM = 3.0, 90.0
# What lies so much above or below the other points of its level lies at another one.
OTHER_LEVEL_MM = 18.0
# No landmark is so far from the middle of the others.
FARTHEST_MM = 250.0
CANAL = "spinal_canal_stenosis"
Points = Mapping[str, np.ndarray]
Size = tuple[int, int]
log = logging.getLogger("labels")


def report_label_points(root: Path, tables: Tables, points: Mapping[str, Points], path: Path) -> None:
    """Log what contradicts itself, a line a kind with its number, and list all in the CSV file `path`.

    `points`: study → name → (3,) patient mm of the annotations; names that are no rows are passed over.
    """
    found = [*outside_points(root, tables)]
    for study, its in points.items():
        found += contradictions(study, {row: point for row, point in its.items() if row in ROWS})
    annotated, series = tables.coordinates["study_id"].nunique(), sum(map(len, tables.series.values()))
    counts = (len(tables.labels), series, len(tables.coordinates), annotated)
    log.info("the tables hold %d studies, %d series and %d label points in %d studies", *counts)
    replace_text(path, as_csv(found))
    if found:
        log.warning("label points: %s", summary(map(asdict, found), str(path)))


def outside_points(root: Path, tables: Tables) -> Iterator[Problem]:
    """The points outside of their file's image; headers are read of one file a series, and of those in doubt."""
    images = root / "train_images"

    def size_of(study: str, series: str, instance: int) -> Size | None:
        return image_size(images / study / series / f"{instance}.dcm")

    return points_outside(tables.coordinates, size_of)


def points_outside(coordinates: pd.DataFrame, size_of: Callable[[str, str, int], Size | None]) -> Iterator[Problem]:
    """The points of Tables.coordinates that lie outside of their file's image.

    `size_of`: study, series and instance → rows and columns, or None where they are unknown.
    """
    for (study, series), its in coordinates.groupby(["study_id", "series_id"], sort=False):
        sizes: dict[int, Size | None] = {}
        columns = (its[name].tolist() for name in ("instance", "row", "x", "y"))
        for instance, row, x, y in zip(*columns, strict=True):
            if not sizes:
                sizes[instance] = size_of(str(study), str(series), instance)
            usual = next(iter(sizes.values()))
            if usual is None or _is_inside(x, y, usual):
                continue
            size = sizes[instance] if instance in sizes else size_of(str(study), str(series), instance)
            if size is not None and not _is_inside(x, y, size):
                detail = f"{row}: x {x:g}, y {y:g} in an image of {size[1]} columns and {size[0]} rows"
                yield Problem(str(study), f"{series}/{instance}", "point-outside", detail)


def _is_inside(x: float, y: float, size: Size) -> bool:
    return -BEYOND_PX <= x <= size[1] - 1 + BEYOND_PX and -BEYOND_PX <= y <= size[0] - 1 + BEYOND_PX


def contradictions(study: str, points: Points) -> list[Problem]:
    """What the points of a study, row → (3,) patient mm, say against each other."""
    far_mm = _far_off(points)
    found = [
        Problem(study, "", "point-far-off", f"{row}: {distance_mm:.0f} mm from the middle of all points")
        for row, distance_mm in far_mm.items()
    ]
    points = {row: point for row, point in points.items() if row not in far_mm}  # they would spoil the comparisons
    return found + _sides(study, points) + _orders(study, points) + _other_levels(study, points)


def _far_off(points: Points) -> dict[str, float]:
    """Row → distance (mm) from the middle of all points, of those that are too far from it."""
    if len(points) < 3:
        return {}
    middle = np.median(np.stack(list(points.values())), axis=0)
    apart_mm = {row: float(np.linalg.norm(point - middle)) for row, point in points.items()}
    return {row: distance_mm for row, distance_mm in apart_mm.items() if distance_mm > FARTHEST_MM}


def _sides(study: str, points: Points) -> list[Problem]:
    """Left points that lie to the right of the right ones, or of the canal where these are missing."""
    wrong, pairs = [], 0
    for row, point in points.items():
        if row.startswith(CANAL):
            continue
        other = points.get(mirrored(row))
        if other is not None and row.startswith("right_"):
            continue  # compared from the left
        centre = other if other is not None else points.get(f"{CANAL}_{ROW_PLACES[row][1]}")
        if centre is None:
            continue
        pairs += 1
        leftwards_mm = float(point[0] - centre[0]) * (1 if row.startswith("left_") else -1)
        if leftwards_mm < -CONTRARY_SIDES_MM:
            wrong.append(row)
    if not wrong:
        return []
    detail = f"left lies to the right of right in {len(wrong)} of {pairs} pairs, such as {wrong[0]}"
    return [Problem(study, "", "sides-exchanged", detail)]


def _orders(study: str, points: Points) -> list[Problem]:
    """Levels of one condition that do not follow each other from head to feet."""
    found = []
    for condition in CONDITIONS:
        heights = _heights(condition, points)
        wrong = []
        for (upper, above_mm), (lower, below_mm) in zip(heights, heights[1:], strict=False):
            levels = LEVELS.index(lower) - LEVELS.index(upper)
            if not LEAST_STEP_MM * levels <= above_mm - below_mm <= LARGEST_STEP_MM * levels:
                wrong.append(f"{lower} is {above_mm - below_mm:.0f} mm below {upper}")
        if wrong:
            found.append(Problem(study, "", "levels-exchanged", f"{condition}: {', '.join(wrong)}"))
    return found


def _other_levels(study: str, points: Points) -> list[Problem]:
    """Conditions whose points lie at other levels than those of the other conditions."""
    found = []
    for condition in CONDITIONS:
        others: dict[str, list[float]] = {level: [] for level in LEVELS}
        for level, height_mm in (
            pair for other in CONDITIONS if other != condition for pair in _heights(other, points)
        ):
            others[level].append(height_mm)
        medians = {level: float(np.median(its)) for level, its in others.items() if len(its) > 1}
        wrong = []
        for level, height_mm in _heights(condition, points):
            nearest = min(medians, key=lambda one: abs(medians[one] - height_mm), default=level)
            if level in medians and nearest != level and abs(medians[level] - height_mm) > OTHER_LEVEL_MM:
                wrong.append(f"{level} lies at {nearest} of the others")
        if wrong:
            found.append(Problem(study, "", "levels-exchanged", f"{condition}: {', '.join(wrong)}"))
    return found


def _heights(condition: str, points: Points) -> Sequence[tuple[str, float]]:
    """(level, z in mm) of a condition's points, from head to feet."""
    return [(level, float(points[row][2])) for level in LEVELS if (row := f"{condition}_{level}") in points]
