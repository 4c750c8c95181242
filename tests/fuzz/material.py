"""What is mutated: small sound series of every make, tables, and a manifest."""

from __future__ import annotations

import hashlib
import io
import warnings
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit

from kernels.lumbar.labels import ROWS, SERIES_KINDS, SEVERITIES
from tests.support.dicom.dicom_writer import make_dataset, make_multiframe, place_tags, texture, upright_grid

KINDS = tuple(SERIES_KINDS.values())
DESCRIPTIONS = tuple(SERIES_KINDS)
NETWORK = b"no TorchScript"
SLICES, HEIGHT, WIDTH = 4, 24, 20
MAKES = (
    "explicit",
    "implicit",
    "big",
    "deflated",
    "rle",
    "signed",
    "bytes",
    "wide",
    "floats",
    "jpeg",
    "jpeg2000",
    "frames",
)
# The fast path reads these.
COMMON_MAKES = ("explicit", "implicit", "rle", "signed")


@cache
def series(kind: str, make: str) -> tuple[bytes, ...]:
    """The files of a sound series, slices of noise on a ramp."""
    grid = upright_grid(kind.split("_")[0], (SLICES, HEIGHT, WIDTH), (3.0, 2.8), 5.0)
    volume = texture(grid.shape, len(make) + 7 * KINDS.index(kind), 255)
    if make == "frames":
        return (_saved(make_multiframe(volume, grid, bits_stored=12)),)
    tags = [{"InstanceNumber": index + 1, **place_tags(grid, index)} for index in range(SLICES)]
    return tuple(_saved(_image(image, make, more)) for image, more in zip(volume, tags, strict=True))


def _image(image: np.ndarray, make: str, tags: dict[str, Any]) -> Dataset:
    if make == "signed":
        return make_dataset(image.astype(np.int16) - 99, **tags)
    if make == "bytes":
        return make_dataset(image.astype(np.uint8), **tags)
    if make == "wide":
        return make_dataset(image.astype(np.uint32) * 70000, **tags)
    if make == "floats":
        dataset = make_dataset(image.astype(np.uint32), **tags)
        del dataset.PixelData
        dataset.FloatPixelData = (image / 7).astype("<f4").tobytes()
        return dataset
    if make.startswith("jpeg"):
        pixels = image.astype(np.uint8)
        dataset, buffer = make_dataset(pixels, **tags), io.BytesIO()
        Image.fromarray(pixels).save(buffer, make)
        dataset.file_meta.TransferSyntaxUID = UID(JPEGBaseline8Bit if make == "jpeg" else JPEG2000Lossless)
        dataset.PixelData = encapsulate([buffer.getvalue()])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        return dataset
    return make_dataset(image, make, bits_stored=12, **tags)


def _saved(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def series_table() -> str:
    """A series table of three studies."""
    rows = [f"{study},{10 * study + number},{text}" for study in (4, 5, 6) for number, text in enumerate(DESCRIPTIONS)]
    return "\n".join(["study_id,series_id,series_description", *rows]) + "\n"


def sample_submission() -> str:
    """What is asked for three studies."""
    rows = [f"{study}_{row},0.333,0.333,0.333" for study in (4, 5, 6) for row in ROWS]
    return "\n".join([",".join(["row_id", *SEVERITIES]), *rows]) + "\n"


@cache
def manifest() -> dict[str, Any]:
    """A manifest that is valid, of a localiser and a grader that are both NETWORK."""
    slices = {"by": "middle", "count": 3}
    view = {"series": "sagittal_t2", "size_px": 32, "slices": slices, "normalisation": "unit"}
    around = {**view, "size_mm": 60.0, "centre": ["spinal_canal_stenosis"], "slices": {"by": "landmark", "count": 3}}
    levels = [row for row in ROWS if row.startswith("spinal")]
    weights = {
        "file": "weights-0.bin",
        "bytes": len(NETWORK),
        "sha256": hashlib.sha256(NETWORK).hexdigest(),
        "golden_seed": 1,
        "golden_output": [0.5, 1.0],
    }
    provenance = {"recipe": "r", "network": "n", "backbone": "b", "fold": 0, "seed": 1, "profile": "smoke"}
    provenance |= {"torch_version": "2", "git_commit": "c", "data_fingerprint": "d"}
    localiser = {"name": "finder", "role": "localiser", "unit": "study", "inputs": [view], "targets": levels}
    grader = {
        "name": "reader",
        "role": "grader",
        "unit": "level",
        "inputs": [around],
        "targets": ["spinal_canal_stenosis"],
    }
    artefacts = [{"member": one, "weights": weights, "provenance": provenance} for one in (localiser, grader)]
    part = {"name": "reader", "weight": {"spinal": 1.0, "foraminal": 0.0, "subarticular": 0.0}}
    return {
        "format": "lumbar-kit-manifest",
        "format_version": 1,
        "name": "fuzzed",
        "priors": {row: [0.5, 0.25, 0.25] for row in ROWS},
        "multipliers": {"spinal": [1.0, 2.0, 4.0]},
        "shape": {"mean_mm": [0.0] * 84, "modes_mm": [[1.0] * 84], "rest_mm": [2.0] * 84},
        "artefacts": artefacts,
        "routes": [{"name": "one", "localisers": ["finder"], "graders": [part]}],
    }
