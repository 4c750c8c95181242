"""The published coordinate data set: images of other patients with a point at each level, for pretraining localisers;
and improved points of the competition's own studies.

The Kaggle data set brendanartley/lumbar-coordinate-pretraining-dataset, unpacked, holds

    coords_pretrain.csv                      filename, source, x, y, level, relative_x, relative_y
    data/processed_<source>_jpgs/<filename>  one grey sagittal slice near the midline
    coords_rsna_improved.csv                 series_id, relative_x, relative_y, condition, side, instance_number,
                                             study_id, level

Established, from public copies of both tables and the code of five teams that use them.  Pretraining: five lines an
image, relative = pixel / size of the image, points where disc and canal meet; lsd and spider are T2, osf T1, tseg CT;
an image whose levels are in wrong order exists.  Improved: an index column, no x and y (a pixel is relative × size of
the file's image), conditions that name their side (`side` repeats it for foramina, and is R for all recesses).  The
canal has two lines a level: L, the front end of the disc, with instance -1, and R, right of it in the image, at the
canal, with its instance.  Those teams take R.

Assumed: that x and y, where another version of the improved table has them, are pixels of the file; and that a canal in
a series' very first file, like an instance below 1, means that the slice is unknown.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from kernels.lumbar.dicom.file_header import UnreadableHeader, read_file_header
from kernels.lumbar.labels import LEVELS
from training.data.tables import CONDITION_TEXTS, LEVEL_TEXTS, Tables, TablesError, read_csv, translate
from training.digests import digest, file_digest

PRETRAINING, IMPROVED = "coords_pretrain.csv", "coords_rsna_improved.csv"
SOURCES = ("lsd", "osf", "spider", "tseg")
CANAL, AT_THE_CANAL = "Spinal Canal Stenosis", "R"
SIDE_LETTERS = {"L": "Left", "R": "Right"}
SIDELESS = {text.partition(" ")[2] for text in CONDITION_TEXTS if text != CANAL}
REMEDY = "COORDINATES= names the unpacked Kaggle data set brendanartley/lumbar-coordinate-pretraining-dataset"
# A point may be off by rounding to whole pixels.
STALE_PX = 1.0
LINE, POINT = ["study_id", "series_id", "instance", "row", "x", "y"], ["study_id", "row"]
log = logging.getLogger("coordinates")


@dataclass(frozen=True)
class LevelImage:
    """One grey sagittal image with a point at each level."""

    source: str
    filename: str
    pixels: np.ndarray
    """(H, W) uint8"""
    points: np.ndarray
    """(5, 2) row and column in pixels, from head to feet."""


@dataclass(frozen=True)
class LevelImages:
    """The usable images, in the table's order."""

    images: tuple[LevelImage, ...]
    fingerprint: str
    """sha256 of the table and of all pixels."""


def read_pretraining(folder: Path) -> LevelImages:
    """Read the pretraining images and their points.  Raises TablesError for an invalid table.

    Missing and unreadable images, and those without five levels in order, are skipped with a warning.
    """
    path = folder / PRETRAINING
    frame = _table(path, {"filename", "source", "level", "relative_x", "relative_y"})
    translate(path, frame, "source", {source: source for source in SOURCES})
    levels = translate(path, frame, "level", {text: LEVELS.index(level) for text, level in LEVEL_TEXTS.items()})
    relative = frame[["relative_y", "relative_x"]].apply(pd.to_numeric, errors="coerce")
    wrong = ~relative.ge(0).all(axis=1) | ~relative.le(1).all(axis=1)
    _refuse(path, frame, wrong, "relative_x or relative_y is no number from 0 to 1")
    lines = frame[["source", "filename"]].assign(level=levels).join(relative)
    content = hashlib.sha256(path.read_bytes())
    images: list[LevelImage] = []
    left_out: dict[str, list[str]] = {}
    for (source, filename), its_own in lines.drop_duplicates().groupby(["source", "filename"], sort=False):
        found = _level_image(folder, str(source), str(filename), its_own)
        if isinstance(found, str):
            left_out.setdefault(found, []).append(f"{source}/{filename}")
            continue
        images.append(found)
        content.update(found.pixels.tobytes())
    for why, names in left_out.items():
        log.warning("%s: %d images are left out, %s (the first: %s)", path, len(names), why, names[0])
    if not images:
        raise TablesError(f"{path}: not one of its images can be used: {REMEDY}, with its folder data/")
    _compare_pixels(path, frame, images)
    counts = Counter(image.source for image in images)
    log.info("%s: %s", path, ", ".join(f"{count} images of {source}" for source, count in counts.items()))
    return LevelImages(tuple(images), content.hexdigest())


def image_folder(source: str) -> Path:
    """Where the images of a source lie, in a folder of published coordinates."""
    return Path("data", f"processed_{source}_jpgs")


def _level_image(folder: Path, source: str, filename: str, lines: pd.DataFrame) -> LevelImage | str:
    """The image with its points, or the reason why it is unusable."""
    if sorted(lines["level"]) != list(range(len(LEVELS))):
        return "as they do not have one line for each level"
    relative = lines.sort_values("level")[["relative_y", "relative_x"]].to_numpy(float)
    if (np.diff(relative[:, 0]) <= 0).any():
        return "as their levels do not follow each other from head to feet"
    try:
        content = (folder / image_folder(source) / filename).read_bytes()
    except OSError:
        return "as their files are missing"
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) if content else None
    if pixels is None:
        return "as their files are no images"
    return LevelImage(source, filename, pixels, relative * pixels.shape)


def _compare_pixels(path: Path, frame: pd.DataFrame, images: list[LevelImage]) -> None:
    """Warn of images that were resized after their x and y had been written."""
    if not {"x", "y"} <= set(frame.columns):
        return
    sizes = {(image.source, image.filename): image.pixels.shape for image in images}
    names = list(zip(frame["source"], frame["filename"], strict=True))
    numbers = frame[["y", "x", "relative_y", "relative_x"]].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    size = np.array([sizes.get(name, (np.nan, np.nan)) for name in names], float)
    off = np.abs(numbers[:, :2] - numbers[:, 2:] * size).max(1) > STALE_PX
    if off.any():
        count = len({name for name, is_off in zip(names, off, strict=True) if is_off})
        log.warning("%s: x and y do not fit the size of %d images; relative_x and relative_y are used", path, count)


def with_improved_coordinates(folder: Path, root: Path, tables: Tables) -> Tables:
    """The tables with the improved points; unchanged if the folder has none."""
    if not folder.is_dir():
        raise TablesError(f"{folder} is no folder: {REMEDY}")
    path = folder / IMPROVED
    if not path.is_file() and not (folder / PRETRAINING).is_file():
        raise TablesError(f"{folder} holds neither {IMPROVED} nor {PRETRAINING}: {REMEDY}")
    if not path.is_file():
        log.warning("%s does not exist: the competition's own points are used", path)
        return tables
    fingerprint = digest(tables.fingerprint, file_digest(path))
    return replace(tables, coordinates=improved_coordinates(folder, root, tables), fingerprint=fingerprint)


def improved_coordinates(folder: Path, root: Path, tables: Tables) -> pd.DataFrame:
    """The points of `tables` with those of the improved table replaced; columns as in Tables.coordinates.

    root: the competition's folder; image sizes convert relative coordinates to pixels.  A row of a study has one
    improved point: in the series of the competition's point, else in the first one.  Raises TablesError.
    """
    path = folder / IMPROVED
    lines, own = _improved_lines(path), tables.coordinates
    series = {(study, identifier) for study, pairs in tables.series.items() for identifier, _ in pairs}
    known = [pair in series for pair in zip(lines["study_id"], lines["series_id"], strict=True)]
    foreign, lines = len(lines) - sum(known), lines[known]
    lines = _with_slices(lines, own)
    sliceless = sum(known) - len(lines)
    lines = lines.assign(elsewhere=~_keys(lines, [*POINT, "series_id"]).isin(_keys(own, [*POINT, "series_id"])))
    lines = lines.sort_values("elsewhere", kind="stable").drop_duplicates(POINT)
    placed = _in_pixels(lines, root / "train_images")[LINE]
    replaced = _keys(own, POINT).isin(_keys(placed, POINT))
    both = own.merge(placed, on=["study_id", "series_id", "instance", "row"], suffixes=("", "_better"))
    moved_px = ((both["x"] - both["x_better"]) ** 2 + (both["y"] - both["y_better"]) ** 2) ** 0.5
    log.info(
        "%s: %d points replace the competition's (moved by %.1f pixels in the median), %d are new; left out: "
        "%d of other studies or series, %d without a slice, %d without an image",
        path,
        int(replaced.sum()),
        moved_px.median(),
        len(placed) - len(own[replaced].drop_duplicates(POINT)),
        foreign,
        sliceless,
        len(lines) - len(placed),
    )
    return pd.concat([own[~replaced], placed], ignore_index=True)


def _improved_lines(path: Path) -> pd.DataFrame:
    """study_id, series_id, instance, row, x, y, relative_x, relative_y; without the canal's front points."""
    frame = _table(path, {"study_id", "series_id", "instance_number", "level", "condition", "side"})
    sided = frame["condition"].isin([CANAL, *SIDELESS])
    sides = translate(path, frame[sided], "side", dict(SIDE_LETTERS))
    nameless = frame["condition"].isin(list(SIDELESS))
    frame = frame.assign(condition=frame["condition"].mask(nameless, sides.astype(str) + " " + frame["condition"]))
    frame = frame[(frame["condition"] != CANAL) | (frame["side"] == AT_THE_CANAL)]
    conditions = translate(path, frame, "condition", dict(CONDITION_TEXTS))
    levels = translate(path, frame, "level", dict(LEVEL_TEXTS))
    columns = ["instance_number", "x", "y", "relative_x", "relative_y"]
    numbers = frame.reindex(columns=columns).apply(pd.to_numeric, errors="coerce")
    relative = numbers[["relative_x", "relative_y"]]
    placed = numbers[["x", "y"]].notna().all(axis=1) | (relative.ge(0) & relative.le(1)).all(axis=1)
    _refuse(path, frame, ~placed, "neither x and y nor relative_x and relative_y (from 0 to 1) are numbers")
    _refuse(path, frame, (numbers["instance_number"] % 1 != 0), "instance_number is no whole number")
    lines = frame[["study_id", "series_id"]].assign(
        instance=numbers["instance_number"].astype(np.int64), row=conditions.astype(str) + "_" + levels.astype(str)
    )
    return lines.join(numbers[columns[1:]])


def _with_slices(lines: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """The lines with a known slice: their own, or that of the competition's point in the same series."""
    unknown = (lines["instance"] < 1) | (lines["row"].str.startswith("spinal") & (lines["instance"] == 1))
    key = [*POINT, "series_id"]
    slices = dict(zip(_keys(own, key), own["instance"], strict=True))
    instance = lines["instance"].mask(unknown, _keys(lines, key).map(slices).astype(float))
    lines = lines.assign(instance=instance)[instance.notna()]
    return lines.astype({"instance": np.int64})


def _in_pixels(lines: pd.DataFrame, images: Path) -> pd.DataFrame:
    """The lines with x and y in pixels; without lines relative to a missing image."""
    relative = lines[lines[["x", "y"]].isna().any(axis=1)]
    files = list(zip(relative["study_id"], relative["series_id"], relative["instance"], strict=True))
    sizes = {
        (study, series, instance): image_size(images / study / series / f"{instance}.dcm") or (np.nan, np.nan)
        for study, series, instance in tqdm(dict.fromkeys(files), desc="image sizes", unit="file", disable=None)
    }
    heights_widths = np.array([sizes[file] for file in files], float).reshape(-1, 2)
    lines = lines.copy()
    places = relative[["relative_x", "relative_y"]].to_numpy(float)
    lines.loc[relative.index, ["x", "y"]] = places * heights_widths[:, ::-1]
    return lines[lines[["x", "y"]].notna().all(axis=1)]


def image_size(path: Path) -> tuple[int, int] | None:
    """Rows and columns of a DICOM file; None if it cannot be read."""
    try:
        header = read_file_header(path).frames[0]
    except UnreadableHeader:
        return None
    return (header.rows, header.columns) if header.rows and header.columns else None


def _keys(frame: pd.DataFrame, columns: list[str]) -> pd.Series:
    return pd.Series(list(frame[columns].itertuples(index=False, name=None)), frame.index, dtype=object)


def _table(path: Path, columns: set[str]) -> pd.DataFrame:
    """A published CSV as text with at least these columns; line n has the index n - 2.  Raises TablesError."""
    if not path.is_file():
        raise TablesError(f"{path} does not exist: {REMEDY}")
    frame = read_csv(path, set())
    if missing := columns - set(frame.columns):
        raise TablesError(f"{path} lacks the columns {', '.join(sorted(missing))}: take the published file")
    return frame


def _refuse(path: Path, frame: pd.DataFrame, wrong: pd.Series, what: str) -> None:
    if wrong.any():
        raise TablesError(f"{path}, line {frame.index[wrong][0] + 2}: {what}: correct or remove the line")
