"""Tiny data in the form in which SPIDER is published: .mha files of made-up spines whose canal is known."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kernels.lumbar.labels import LEVELS
from training.data.spider.dataset import import_spider

TYPES = {"u1": "MET_UCHAR", "u2": "MET_USHORT", "i2": "MET_SHORT", "f4": "MET_FLOAT"}
# (slice, row, column) of the volumes: 14 mm × 220 mm × 100 mm.
SHAPE, SPACING_MM = (16, 220, 100), np.array([0.9, 1.0, 1.0])
ORIGIN_MM = np.array([-7.0, -40.0, 110.0])
# Sagittal axes: to the left, to the feet, to the back.
AXES = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
DISC_ROWS = (40, 72, 104, 136, 166)
SLOPE, MIDDLE_COLUMN = 0.2, 50.0
WIDTHS_MM = (14.0, 12.0, 9.0, 5.0, 12.0)
MARKER_MM = np.array([3.0, 40.0, 60.0])


def write_mha(
    path: Path,
    voxels: np.ndarray,
    order: Sequence[int] = (0, 1, 2),
    flips: Sequence[bool] = (False, False, False),
    compressed: bool = True,
    origin_mm: np.ndarray = ORIGIN_MM,
    spacing_mm: np.ndarray = SPACING_MM,
    axes: np.ndarray = AXES,
    **changes: str,
) -> None:
    """Write (slice, row, column) voxels with the file's axes, the slowest first, in this order and some reversed."""
    steps, origin = axes * spacing_mm[:, None], np.array(origin_mm, float)
    for axis, is_flipped in enumerate(flips):
        if is_flipped:
            origin = origin + (voxels.shape[axis] - 1) * steps[axis]
            steps = np.where(np.arange(3)[:, None] == axis, -steps, steps)
            voxels = np.flip(voxels, axis)
    voxels, steps = voxels.transpose(order), steps[list(order)]
    lengths = np.linalg.norm(steps, axis=1)
    content = np.ascontiguousarray(voxels).tobytes()
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(compressed),
        "TransformMatrix": " ".join(f"{value:g}" for value in (steps / lengths[:, None])[::-1].ravel()),
        "Offset": " ".join(f"{value:g}" for value in origin),
        "ElementSpacing": " ".join(f"{value:g}" for value in lengths[::-1]),
        "DimSize": " ".join(map(str, voxels.shape[::-1])),
        "ElementType": TYPES[voxels.dtype.str[1:]],
        **changes,
        "ElementDataFile": "LOCAL",
    }
    text = "".join(f"{name} = {value}\n" for name, value in header.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() + (zlib.compress(content) if compressed else content))


def spine(widths_mm: Sequence[float] = WIDTHS_MM) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Image and mask of a spine, and level → (3,) mm of the canal's centre beside the disc's posterior edge."""
    _, rows, columns = np.indices(SHAPE)
    mask, image = np.zeros(SHAPE, np.uint16), np.full(SHAPE, 30.0)
    middle = MIDDLE_COLUMN + SLOPE * (rows - SHAPE[1] / 2)
    # Measured at right angles to the canal: along a row it is longer.
    across = np.hypot(1, SLOPE)
    widths = np.interp(np.arange(SHAPE[1]), DISC_ROWS, widths_mm)[rows]
    canal = np.abs(columns - middle) <= widths / 2 * across
    mask[canal], image[canal] = 100, 120
    points = {}
    for label, row, level in zip(range(205, 200, -1), DISC_ROWS, LEVELS, strict=True):
        edge = int(MIDDLE_COLUMN + SLOPE * (row - SHAPE[1] / 2) - 12)
        disc = (np.abs(rows - row) <= 4) & (columns <= edge) & (columns > edge - 34)
        mask[disc], image[disc] = label, 90
        # The foot of the perpendicular from the edge to the canal's axis.
        along = np.array([1.0, SLOPE]) / across
        start = np.array([SHAPE[1] / 2, MIDDLE_COLUMN])
        foot = start + (np.array([row, edge - 0.5]) - start) @ along * along
        index = np.array([(SHAPE[0] - 1) / 2, *foot])
        points[level] = ORIGIN_MM + (index * SPACING_MM) @ AXES
    marker = np.rint((MARKER_MM - ORIGIN_MM) @ AXES.T / SPACING_MM).astype(int)
    image[marker[0] - 2 : marker[0] + 3, marker[1] - 2 : marker[1] + 3, marker[2] - 2 : marker[2] + 3] = 250
    return image.astype(np.uint8), mask, points


def write_patient(
    folder: Path, number: int, kinds: Sequence[str] = ("t2",), without: int | None = None, flip: bool = False
) -> None:
    """Images and masks of a patient; `without`: a label that the mask lacks."""
    image, mask, _ = spine()
    if without is not None:
        mask[mask == without] = 0
    for kind in kinds:
        flips, order = ((True, False, True), (2, 1, 0)) if flip else ((False,) * 3, (0, 1, 2))
        write_mha(folder / "images" / f"{number}_{kind}.mha", image, order, flips)
        write_mha(folder / "masks" / f"{number}_{kind}.mha", mask, order, flips, compressed=False)


def write_tables(folder: Path, numbers: Sequence[int]) -> None:
    """Both CSV files."""
    lines = [f"{number}_t2,7,training,110.0,3000.0" for number in numbers]
    columns = "new_file_name,num_discs,subset,EchoTime,RepetitionTime"
    (folder / "overview.csv").write_text("\n".join([columns, *lines]))
    graded = [f"{number},{disc},0,2" for number in numbers for disc in range(1, 6)]
    (folder / "radiological_gradings.csv").write_text("\n".join(["Patient,IVD label,Modic,Pfirrman grade", *graded]))


def write_imported(folder: Path, count: int = 10) -> Path:
    """`folder`/data: so many patients, imported."""
    numbers = range(1, count + 1)
    for number in numbers:
        write_patient(folder / "spider", number)
    write_tables(folder / "spider", numbers)
    import_spider(folder / "spider", folder / "data")
    return folder / "data"
