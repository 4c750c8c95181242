"""Images in the published layout of the coordinates for pretraining, and localisers that train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd
import torch

from kernels.lumbar.labels import LEVELS
from kernels.lumbar.specs import Member, ViewRequest
from training.data.external import PRETRAINING
from training.data.tables import LEVEL_TEXTS
from training.recipe_schema.fitting import Augmentation, Fitting, Network, Optimisation
from training.recipe_schema.schema import MemberRecipe

CPU = torch.device("cpu")
CANAL = tuple(f"spinal_canal_stenosis_{level}" for level in LEVELS)
FORAMEN = tuple(f"neural_foraminal_narrowing_{level}" for level in LEVELS)
SIZES = {"spider/1_t2.jpg": (120, 80), "lsd/0001.jpg": (64, 96), "osf/ID02.jpg": (60, 60), "tseg/case.jpg": (90, 88)}


def write_image(path: Path, shape: tuple[int, int], places: np.ndarray) -> None:
    """A JPEG with a bright dot, wider than its artefacts, at each (row, column)."""
    rows, columns = np.indices(shape)
    image = np.full(shape, 20.0)
    for row, column in places:
        image += 220 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])


def write_pretraining(folder: Path) -> Path:
    """Four images of four shapes in the published layout, lines from feet to head, without index."""
    lines = []
    for name, (height, width) in SIZES.items():
        source, filename = name.split("/")
        rows = np.linspace(0.15, 0.85, 5) * height
        places = np.rint(np.stack([rows, width * (0.4 + 0.02 * np.arange(5))], 1))
        write_image(folder / "data" / f"processed_{source}_jpgs" / filename, (height, width), places)
        for text, (row, column) in reversed(list(zip(LEVEL_TEXTS, places, strict=True))):
            lines.append((filename, source, int(column), int(row), text, column / width, row / height))
    columns = ["filename", "source", "x", "y", "level", "relative_x", "relative_y"]
    pd.DataFrame(lines, columns=columns).to_csv(folder / PRETRAINING, index=False)
    return folder


def view(series: str = "sagittal_t2", size_px: int = 48, normalisation: str = "unit", **slices: Any) -> ViewRequest:
    """Three slices from the middle, or others."""
    chosen = {"by": "middle", "count": 3, **slices}
    return ViewRequest.model_validate(
        {"series": series, "slices": chosen, "size_px": size_px, "normalisation": normalisation}
    )


def localiser(
    inputs: tuple[ViewRequest, ...],
    targets: tuple[str, ...] = CANAL,
    unit: Literal["study", "side"] = "study",
    augmentation: Augmentation | None = None,
    batch_size: int = 2,
) -> MemberRecipe:
    """A localiser of these views."""
    member = Member(name="canal", role="localiser", unit=unit, inputs=inputs, targets=targets)
    fitting = Fitting(
        network=Network(name="deeplab_heatmap"),
        loss="heatmap_mse",
        optimisation=Optimisation(epochs=1, batch_size=batch_size, learning_rate=1e-3),
        augmentation=augmentation or Augmentation(),
    )
    return MemberRecipe(member=member, fitting=fitting)
