"""A stand-in for the published coordinate data set that training/data/external.py reads, made of phantom studies.

    python -m training.phantom.external --out DIR --from DATA [--improve DATA]

Images are the middle sagittal slices of DATA's training studies, as JPEGs of 256 pixels: T2 as if from "spider", T1 as
if from "osf"; their points are the true ones, rounded to pixels.  The improved table holds the points of DATA's own
table at their true places.

A network that was pretrained on DATA's studies has seen those that DATA's folds hold out, which is not so of the
published images.  To measure what pretraining brings, make the images of another data set (another seed), and name the
one to be trained on with --improve.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.labels import LEVELS
from training.data.external import AT_THE_CANAL, IMPROVED, PRETRAINING, image_size
from training.data.tables import CONDITION_TEXTS, LEVEL_TEXTS, Tables, read_tables

LONGER_SIDE_PX = 256
SOURCE_OF = {"sagittal_t2": "spider", "sagittal_t1": "osf"}
# From the canal to the front of a disc.
DISC_MM = np.array([0.0, -35.0, 0.0])
IMPROVED_COLUMNS = "series_id relative_x relative_y condition side instance_number study_id level".split()


def write_external(out: Path, source: Path, improve: Path) -> None:
    """Write the published layout: images of `source`'s training studies, improved points of those of `improve`."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [line for study in _studies(source) for line in _write_images(out, *study)]
    columns = ["filename", "source", "x", "y", "level", "relative_x", "relative_y"]
    pd.DataFrame(lines, columns=columns).to_csv(out / PRETRAINING, index=False)
    tables = read_tables(improve)
    improved = [line for study, truth in _studies(improve) for line in _improved(improve, tables, study, truth)]
    # The published table has a nameless column of line numbers.
    pd.DataFrame(improved, columns=IMPROVED_COLUMNS).to_csv(out / IMPROVED)


def _studies(data: Path) -> Iterator[tuple[Study, dict[str, np.ndarray]]]:
    """The training studies of a phantom data set, each with the true places of its rows in mm."""
    tables, frame = read_tables(data), pd.read_csv(data / "truth" / "landmarks.csv", dtype={"study_id": str})
    rows = frame["condition"] + "_" + frame["level"]
    truth: dict[str, dict[str, np.ndarray]] = {}
    for study, row, point in zip(frame["study_id"], rows, frame[["x_mm", "y_mm", "z_mm"]].to_numpy(float), strict=True):
        truth.setdefault(study, {})[row] = point
    for study in tables.labels.index:
        yield read_study(data / "train_images" / study, study, tables.series.get(study, [])), truth[study]


def _write_images(out: Path, study: Study, truth: dict[str, np.ndarray]) -> Iterator[tuple[object, ...]]:
    """The study's images, and their lines of the pretraining table, from feet to head as published."""
    points = np.stack([truth[f"spinal_canal_stenosis_{level}"] for level in LEVELS])
    for kind, source in SOURCE_OF.items():
        for stack in sorted(study.of_kind(kind), key=lambda one: len(one.planes))[-1:]:
            pixels, places = _middle_slice(stack, points)
            if (places < 0).any() or (places >= pixels.shape).any():
                continue
            name = f"{study.study_id}_{kind[-2:]}.jpg"
            folder = out / "data" / f"processed_{source}_jpgs"
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name), pixels)
            height, width = pixels.shape
            for text, (row, column) in reversed(list(zip(LEVEL_TEXTS, places, strict=True))):
                yield name, source, column, row, text, column / width, row / height


def _middle_slice(stack: Stack, points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slice with its longer side shrunk or stretched to LONGER_SIDE_PX, and (K, 2) row and column of the points."""
    middle = len(stack.planes) // 2
    row, column, _ = stack.planes[middle].to_pixel(points_mm)
    shape = np.array(stack.pixels.shape[1:])
    wanted = np.rint(shape * LONGER_SIDE_PX / shape.max()).astype(int)
    shrinks = shape.max() > LONGER_SIDE_PX
    height, width = wanted.tolist()
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    pixels = cv2.resize(stack.pixels[middle], (width, height), interpolation=interpolation)
    places = (np.stack([row, column], 1) + 0.5) * wanted / shape - 0.5
    return pixels, np.rint(places).astype(int)


def _improved(data: Path, tables: Tables, study: Study, truth: dict[str, np.ndarray]) -> Iterator[tuple[object, ...]]:
    """The improved table's lines for the points that the study's annotators left."""
    condition_text = {condition: text for text, condition in CONDITION_TEXTS.items()}
    own = tables.coordinates[tables.coordinates["study_id"] == study.study_id]
    for series, row in zip(own["series_id"], own["row"], strict=True):
        text, level = next((text, level) for text, level in LEVEL_TEXTS.items() if row.endswith(level))
        condition = condition_text[row.removesuffix(f"_{level}")]
        # Published recesses are all of side R.
        side = condition[0] if "Foraminal" in condition else AT_THE_CANAL
        instance, x, y = _place(data, study, series, truth[row])
        if condition.startswith("Spinal"):
            _, front_x, front_y = _place(data, study, series, truth[row] + DISC_MM)
            yield series, max(front_x, 0.0), front_y, condition, "L", -1, study.study_id, text
        yield series, x, y, condition, side, instance, study.study_id, text


def _place(data: Path, study: Study, series: str, point_mm: np.ndarray) -> tuple[int, float, float]:
    """Instance of the nearest slice of a series, and where in its image a point lies: relative x and y."""
    planes = {instance: plane for (its_series, instance), plane in study.source_planes.items() if its_series == series}
    found = {instance: plane.to_pixel(point_mm) for instance, plane in planes.items()}
    instance = min(found, key=lambda one: abs(float(found[one][2])))
    size = image_size(data / "train_images" / study.study_id / series / f"{instance}.dcm")
    assert size is not None  # it has just been read
    return instance, float(found[instance][1]) / size[1], float(found[instance][0]) / size[0]


def main() -> None:
    """Read the command line and write the stand-in."""
    parser = argparse.ArgumentParser(
        prog="python -m training.phantom.external",
        description="Write a stand-in for the published lumbar coordinate data set, made of phantom studies.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must be empty or absent")
    parser.add_argument("--from", dest="source", type=Path, required=True, help="phantom data set the images come from")
    parser.add_argument("--improve", type=Path, help="phantom data set whose points are improved; default: the same")
    given = parser.parse_args()
    for data in (given.source, given.improve or given.source):
        if not (data / "truth" / "landmarks.csv").is_file():
            parser.error(f"{data} is no phantom data set: it has no truth/landmarks.csv")
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"{given.out} holds something already: remove it, or choose another folder")
    write_external(given.out, given.source, given.improve or given.source)


if __name__ == "__main__":
    main()
