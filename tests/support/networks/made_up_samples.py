"""Samples of made-up studies, whose stacks and landmarks are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from kernels.lumbar.dicom.geometry import Plane, lift_points
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.labels import LEVELS, ROWS, Unit, row_of
from kernels.lumbar.specs import Member, ViewRequest
from training.data.cache.stack_cache import StackCache
from training.data.samples.batch import Batch
from training.data.samples.member_samples import MemberSamples
from training.data.tables import Tables
from training.recipe_schema.fitting import Augmentation, Fitting, Network, Optimisation
from training.recipe_schema.schema import MemberRecipe

CPU = torch.device("cpu")
EVERYTHING = Augmentation(
    rotate_deg=15,
    shear_deg=10,
    scale=0.1,
    sharpen_or_blur=0.5,
    slice_shuffle=0.5,
    brightness=0.1,
    contrast=0.1,
    noise=0.02,
    mirror=0.5,
    jitter_mm="localiser",
    slice_jitter=1,
)
ERRORS_MM = {"sagittal_t1": 2.0, "sagittal_t2": 2.0, "axial_t2": 2.0}
CROP = ViewRequest.model_validate(
    {
        "series": "axial_t2",
        "centre": ["left_subarticular_stenosis", "right_subarticular_stenosis"],
        "slices": {"by": "landmark", "count": 3},
        "size_mm": 16,
        "size_px": 32,
        "normalisation": "unit",
    }
)
CANAL_CROP = CROP.model_copy(update={"series": "sagittal_t2", "centre": ("spinal_canal_stenosis",)})
AXIAL_CROP = CROP.model_copy(update={"centre": ("spinal_canal_stenosis",)})
STUDIES = tuple(str(number) for number in range(40))


def recipe_of(
    views: Sequence[ViewRequest] = (CROP,),
    augmentation: Augmentation | None = None,
    role: Literal["grader", "localiser"] = "grader",
    targets: Sequence[str] = ("spinal_canal_stenosis",),
    batch_size: int = 16,
) -> MemberRecipe:
    """A network that is fed these views of each level."""
    member = Member(name="one", role=role, unit="level", inputs=tuple(views), targets=tuple(targets))
    optimisation = Optimisation(epochs=1, batch_size=batch_size, learning_rate=1e-3)
    loss = "weighted_cross_entropy" if role == "grader" else "heatmap_mse"
    network = Network(name="none")
    augmentation = augmentation or Augmentation()
    return MemberRecipe(
        member=member,
        fitting=Fitting(network=network, loss=loss, optimisation=optimisation, augmentation=augmentation),
    )


def grid(shape: tuple[int, int, int]) -> tuple[Plane, ...]:
    """Planes of a stack around zero, 1 mm apart, with pixels of 0.5 mm: crops of 0.5 mm a pixel have its own pixels."""
    slices, height, width = shape
    corner = [-(width - 1) / 4, -(height - 1) / 4, (slices - 1) / 2]
    steps = np.array([0.5, 0, 0]), np.array([0, 0.5, 0])
    return tuple(Plane(np.add(corner, [0, 0, -place]), *steps) for place in range(slices))


def made_up(
    recipe: MemberRecipe,
    pixels: np.ndarray,
    missing: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    labels: np.ndarray | None = None,
    landmarks: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    studies: Sequence[str] = STUDIES,
) -> tuple[StackCache, Tables]:
    """Cache and tables of studies whose stacks are all `pixels` (slice, H, W), with all landmarks at zero but for given
    ones; `missing`: view → (study, level) pairs that lack its landmarks."""
    every = {study: dict.fromkeys(ROWS, np.zeros(3)) | (landmarks or {}).get(study, {}) for study in studies}
    for number, places in (missing or {}).items():
        for study, level in places:
            for name in recipe.member.inputs[number].centre:
                every[studies[study]].pop(row_of(name, Unit(LEVELS[level])), None)
    kinds = {request.series for request in recipe.member.inputs}
    stacks = tuple(Stack(kind, kind, pixels, grid(pixels.shape), tuple(range(len(pixels)))) for kind in kinds)
    decoded = tuple(Study(study, stacks, []) for study in studies)
    if labels is None:
        labels = np.random.default_rng(0).integers(0, 3, (len(studies), 25))
    table = pd.DataFrame(labels, index=list(studies), columns=list(ROWS))
    return StackCache(tuple(studies), decoded, every), Tables(table, {}, pd.DataFrame(), "")


def made_samples(
    recipe: MemberRecipe,
    pixels: np.ndarray,
    train: Sequence[str] = STUDIES,
    held_out: Sequence[str] = STUDIES,
    seed: int = 0,
    errors: Mapping[str, float] = ERRORS_MM,
    device: torch.device = CPU,
    threads: int = 1,
    offsets: Mapping[str, np.ndarray] | None = None,
    **what: Any,
) -> MemberSamples:
    """Samples of such studies; `what` goes to made_up."""
    cache, tables = made_up(recipe, pixels, **what)
    return MemberSamples(cache, tables, recipe, train, held_out, device, seed, errors, threads, offsets)


def textures(seed: int = 0) -> np.ndarray:
    """(5, 48, 48) of noise."""
    return np.random.default_rng(seed).integers(0, 256, (5, 48, 48)).astype(np.uint8)


def ramp(axis: int) -> np.ndarray:
    """(5, 48, 48) whose value says the place along an axis."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return np.broadcast_to(np.arange((5, 48, 48)[axis]).reshape(shape) * (50 if axis == 0 else 5), (5, 48, 48)).astype(
        np.uint8
    )


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches are equal."""
    pairs = [*zip(one.views, other.views, strict=True), (one.present, other.present)]
    return all(torch.equal(a, b) for a, b in pairs) and torch.allclose(one.target, other.target, equal_nan=True)


def dotted(points: Sequence[tuple[int, int, int]]) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
    """Landmarks in mm of every study, and the (5, 48, 48) image that has a dot at each, in its slice alone."""
    slices, rows, columns = np.meshgrid(np.arange(5), np.arange(48), np.arange(48), indexing="ij")
    image = sum(
        255 * np.exp(-0.5 * (((rows - r) / 1.2) ** 2 + ((columns - c) / 1.2) ** 2)) * (slices == s)
        for s, r, c in points
    )
    mm = lift_points(grid((5, 48, 48)), np.array(points, float))
    names = [f"{side}_subarticular_stenosis_{level}" for level in LEVELS for side in ("left", "right")]
    return {study: dict(zip(names, [*mm] * 5, strict=True)) for study in STUDIES}, image.clip(0, 255).astype(np.uint8)
