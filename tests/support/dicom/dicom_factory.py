"""Writes whole small data sets in the competition's layout that are foreign to the project's phantom: other images,
sizes, spacings, orientations, file names, numbers and transfer syntaxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kernels.lumbar.labels import CONDITIONS, LEVELS, ROWS, SERIES_KINDS
from tests.support.dicom.dicom_writer import Grid, rotation, upright_grid, write_series

DESCRIPTIONS = {kind: description for description, kind in SERIES_KINDS.items()}
SEVERITY_NAMES = ("Normal/Mild", "Moderate", "Severe")


@dataclass
class ForeignTruth:
    """What is true of a foreign data set, by study id."""

    landmarks: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Row name → mm."""
    severities: dict[str, dict[str, int]] = field(default_factory=dict)
    """Row name → 0, 1, 2; a missing label is no key."""
    train: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)


def write_foreign_dataset(root: Path, studies: int, seed: int, test_studies: int = 2) -> ForeignTruth:
    """Write train_images, test_images and the five tables of the competition below `root`.

    A bright ball sits at every landmark, larger where it is more severe, so that both stages have something to learn.
    """
    random = np.random.default_rng(seed)
    truth = ForeignTruth()
    descriptions: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    coordinates: list[dict[str, Any]] = []
    for index in range(studies + test_studies):
        part = "train" if index < studies else "test"
        study = str(int(random.integers(10**6, 4 * 10**9)))
        getattr(truth, part).append(study)
        truth.landmarks[study] = _foreign_landmarks(random)
        drawn = random.choice(3, len(ROWS), p=(0.5, 0.3, 0.2))
        truth.severities[study] = {
            row: int(grade) for row, grade in zip(ROWS, drawn, strict=True) if random.random() > 0.02
        }
        for series, kind in _foreign_series_kinds(random):
            folder = root / f"{part}_images" / study / series
            grids = _foreign_grids(kind, truth.landmarks[study], random)
            points = _write_foreign_series(
                folder, kind, grids, dict(zip(ROWS, drawn, strict=True)), truth.landmarks[study], random
            )
            descriptions[part].append(
                {"study_id": study, "series_id": series, "series_description": DESCRIPTIONS[kind]}
            )
            named = {(c["study_id"], c["condition"], c["level"]) for c in coordinates}
            for row, point in points.items() if part == "train" else ():
                one = _coordinate_row(study, series, row, point)
                if (study, one["condition"], one["level"]) not in named:
                    coordinates.append(one)
    _write_tables(root, truth, descriptions, coordinates)
    return truth


def _foreign_landmarks(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Row name → mm: a column of five levels, bent, shifted and turned a little."""
    shift, turn = random.normal(0, 8, 3), rotation(random.normal(0, 3, 3))
    landmarks = {}
    for row in ROWS:
        level = next(index for index, name in enumerate(LEVELS) if row.endswith(name))
        side = {"left": 1, "right": -1}.get(row.split("_")[0], 0)
        offset = 8.0 if "subarticular" in row else 17.0
        behind = -4.0 if "foraminal" in row else 0.0
        at = np.array([side * offset, behind + 1.5 * (level - 2) ** 2, 58 - 29.0 * level])
        landmarks[row] = turn @ (at + random.normal(0, 1, 3)) + shift
    return landmarks


def _foreign_series_kinds(random: np.random.Generator) -> list[tuple[str, str]]:
    """Series ids and kinds: usually one of each, sometimes two axial ones, sometimes no sagittal T2."""
    kinds = ["sagittal_t1", "sagittal_t2", "axial_t2"]
    drawn = random.random()
    if drawn < 0.25:
        kinds.append("axial_t2")
    elif drawn < 0.3:
        kinds.remove("sagittal_t2")
    ids = random.choice(4 * 10**9, len(kinds), replace=False)
    return [(str(one), kind) for one, kind in zip(ids, kinds, strict=True)]


def _foreign_grids(kind: str, landmarks: dict[str, np.ndarray], random: np.random.Generator) -> list[Grid]:
    """One block of slices; of an axial series sometimes one oblique block a level."""
    middle = np.mean(list(landmarks.values()), axis=0) + random.normal(0, 3, 3)
    turn = random.normal(0, 4, 3)
    if kind.startswith("sagittal"):
        height, width = (int(value) for value in random.integers(95, 125, 2))
        spacing = tuple(float(value) for value in random.uniform(1.6, 1.9, 2))
        shape = (int(random.integers(10, 15)), height, width)
        return [upright_grid("sagittal", shape, spacing, float(random.uniform(4, 5.5)), middle, turn)]
    height, width = (int(value) for value in random.integers(80, 110, 2))
    spacing = (float(random.uniform(1.0, 1.4)),) * 2
    if random.random() < 0.5:
        slices = int(random.integers(26, 34))
        return [upright_grid("axial", (slices, height, width), spacing, 160 / slices, middle, turn)]
    blocks = []
    for level, tilt in zip(LEVELS, (10, 6, -1, -11, -25), strict=True):
        centre = landmarks[f"spinal_canal_stenosis_{level}"]
        blocks.append(upright_grid("axial", (5, height, width), spacing, 4.4, centre, (tilt, 0, 0)))
    return blocks


def _write_foreign_series(
    folder: Path,
    kind: str,
    grids: Sequence[Grid],
    grades: dict[str, int],
    landmarks: dict[str, np.ndarray],
    random: np.random.Generator,
) -> dict[str, tuple[int, float, float]]:
    """Write the blocks; returns number, row and column of each landmark that belongs to the kind and lies in it."""
    syntax = str(random.choice(["rle", "explicit", "implicit", "big"]))
    group = {"sagittal_t1": "foraminal", "sagittal_t2": "spinal", "axial_t2": "subarticular"}[kind]
    tags: dict[str, Any] = {"bits_stored": 12}
    if random.random() < 0.3:
        tags |= {"RescaleSlope": "2.5", "RescaleIntercept": "-100"}
    count = sum(grid.shape[0] for grid in grids)
    first, stride = int(random.integers(1, 40)), int(random.integers(1, 4))
    numbers = [first + stride * index for index in range(count)]
    if random.random() < 0.5:
        numbers.reverse()
    found: dict[str, tuple[int, float, float]] = {}
    nearest: dict[str, float] = {}
    for grid in grids:
        volume = _foreign_volume(grid, kind, grades, landmarks, random)
        own, numbers = numbers[: grid.shape[0]], numbers[grid.shape[0] :]
        write_series(folder, volume, grid, syntax=syntax, numbers=own, **tags)
        for row, point in landmarks.items():
            index, i, j = grid.pixel(point)
            distance = abs((point - grid.origin - index * grid.step) @ np.cross(grid.column, grid.row))
            if group in row and distance < min(nearest.get(row, np.inf), 10):
                nearest[row], found[row] = distance, (own[index], i, j)
    return found


def _foreign_volume(
    grid: Grid, kind: str, grades: dict[str, int], landmarks: dict[str, np.ndarray], random: np.random.Generator
) -> np.ndarray:
    """(slice, H, W) uint16 of 12 bits: a gradient, noise, and the balls."""
    points = grid.points()
    centre = np.mean(list(landmarks.values()), axis=0)
    body = 600 + 3.0 * (points[..., 1] - centre[1]) + 1.0 * (points[..., 2] - centre[2])
    body[np.linalg.norm(points[..., :2] - centre[:2], axis=-1) > 75] = 40
    for row, point in landmarks.items():
        seen = "subarticular" not in row if kind.startswith("sagittal") else "foraminal" not in row
        if seen:
            radius_mm = (2.5, 4.0, 5.5)[grades[row]]
            body += 1800 * _ball(grid, point, radius_mm)
    return np.clip(body + random.normal(0, 40, body.shape), 0, 4095).astype(np.uint16)


def _ball(grid: Grid, centre: np.ndarray, radius_mm: float) -> np.ndarray:
    """(slice, H, W) Gaussian of height 1; the product of three, as the grid's axes are at right angles."""
    factors = []
    for count, step in zip(
        grid.shape, (grid.step, grid.row * grid.spacing[0], grid.column * grid.spacing[1]), strict=True
    ):
        length = np.linalg.norm(step)
        places = np.arange(count) * length - (centre - grid.origin) @ step / length
        factors.append(np.exp(-(places**2) / (2 * radius_mm**2)))
    return np.einsum("s,i,j->sij", *factors)


def _title(name: str) -> str:
    return " ".join(word.capitalize() for word in name.split("_"))


def _coordinate_row(study: str, series: str, row: str, point: tuple[int, float, float]) -> dict[str, Any]:
    condition = next(name for name in CONDITIONS if row.startswith(name))
    level = row.removeprefix(condition + "_").replace("_", "/").upper()
    number, i, j = point
    names = {"study_id": study, "series_id": series, "instance_number": number, "condition": _title(condition)}
    return {**names, "level": level, "x": j, "y": i}


def _write_tables(
    root: Path,
    truth: ForeignTruth,
    descriptions: dict[str, list[dict[str, str]]],
    coordinates: list[dict[str, Any]],
) -> None:
    labels = []
    for study in truth.train:
        grades = truth.severities[study]
        labels.append(
            {"study_id": study, **{row: SEVERITY_NAMES[grades[row]] if row in grades else None for row in ROWS}}
        )
    tables = {
        "train": pd.DataFrame(labels, columns=["study_id", *ROWS]),
        "train_series_descriptions": pd.DataFrame(descriptions["train"]),
        "train_label_coordinates": pd.DataFrame(coordinates),
        "test_series_descriptions": pd.DataFrame(descriptions["test"]),
        "sample_submission": pd.DataFrame(
            [(f"{study}_{row}", 1 / 3, 1 / 3, 1 / 3) for study in sorted(truth.test) for row in ROWS],
            columns=["row_id", "normal_mild", "moderate", "severe"],
        ),
    }
    for name, table in tables.items():
        table.to_csv(root / f"{name}.csv", index=False)
