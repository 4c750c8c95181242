"""Published single slices (training/data/external.py) as samples for pretraining a localiser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from kernels.lumbar.dicom.geometry import CANONICAL_AXES, Plane, body_plane
from kernels.lumbar.dicom.study import Stack
from kernels.lumbar.inputs.crops import Crops, longer_side_mm
from kernels.lumbar.labels import LEVELS, UNITS, row_of
from kernels.lumbar.specs import Member
from training.data.cache.crop_cache import Cache, CachedView, stored
from training.data.external import SOURCES, LevelImage, LevelImages
from training.data.samples.member_samples import MemberSamples
from training.data.tables import Tables
from training.recipe_schema.schema import MemberRecipe

HELD_OUT = 0.1
COLUMNS_TO, ROWS_TO, ALONG = CANONICAL_AXES["sagittal"]
# The images' spacing is unknown; 1 mm a pixel is assumed, and nothing depends on it.
IMAGE = Plane(np.zeros(3), COLUMNS_TO, ROWS_TO)
# All slices of a view show one place; they are a little apart, so that they have an order.
SLICE_STEP_MM = 1e-4


class PretrainingSamples(MemberSamples):
    """Samples of images with a point at each level, for localisers that pass `pretrainable`.

    Each image becomes a study: every slice of the first view shows it, scaled to fill the view, and the other views are
    missing.  Targets are the points of their levels, in the middle slice, at distance 0 from all.  These are points of
    the canal; foramina lie in front of it at about the same height.  Augmentation, normalisation and order are those of
    MemberSamples.  A tenth of the images, drawn by the seed, is held out.
    """

    def __init__(
        self,
        images: LevelImages,
        recipe: MemberRecipe,
        device: torch.device,
        seed: int,
        sources: Sequence[str] = SOURCES,
    ) -> None:
        pretrainable(recipe.member)
        chosen = [image for image in images.images if image.source in sources]
        if len(chosen) < 2:
            raise ValueError(f"{recipe.member.name}: pretraining has {len(chosen)} images of {', '.join(sources)}")
        cache = _as_cache(chosen, recipe.member)
        drawn = np.random.default_rng(seed).permutation(len(chosen))
        held_out = max(1, round(HELD_OUT * len(chosen)))
        train, validation = ([cache.studies[place] for place in part] for part in np.split(drawn, [-held_out]))
        unlabelled = Tables(pd.DataFrame(), {}, pd.DataFrame(), images.fingerprint)
        super().__init__(cache, unlabelled, recipe, train, validation, device, seed, {})

    def read(self, indices: np.ndarray) -> list[torch.Tensor]:
        """The views (B, slice, H, W) uint8 of some samples, without expanding the slices of all images."""
        return [torch.from_numpy(view.pixels[_places(view)[indices]]) for view in self.views]


def pretrainable(member: Member) -> None:
    """Raises ValueError for a network that cannot be trained on single slices with a point at each level."""
    first, kinds = member.inputs[0], {target.removesuffix(f"_{_level_of(target)}") for target in member.targets}
    whole_sagittal = body_plane(first.series) == "sagittal" and not first.centre and not first.marks
    five_levels = {_level_of(target) for target in member.targets} == set(LEVELS)
    if member.role != "localiser" or member.answers != "points" or not whole_sagittal:
        raise ValueError(f"{member.name}: pretraining is for localisers that find points in whole sagittal images")
    if member.unit not in ("study", "side") or not five_levels or len(kinds) != 1 or "subarticular" in kinds.pop():
        raise ValueError(
            f"{member.name}: pretraining needs five targets, the canal or one side's foramen at each level"
        )


def _level_of(target: str) -> str:
    return next((level for level in LEVELS if target.endswith(level)), "")


def _places(view: CachedView) -> np.ndarray:
    return np.arange(len(view.pixels)) if view.places is None else view.places


def _as_cache(images: Sequence[LevelImage], member: Member) -> Cache:
    """The images as studies, in the first view; for networks of one side, as left sides."""
    unit, units = UNITS[member.unit][0], len(UNITS[member.unit])
    views = {}
    for place in (stored(member.unit, request) for request in member.inputs):
        count = len(images) * len(UNITS[place.unit])
        views[place] = _missing(count, place.view.slices.count, place.view.size_px)
    first = stored(member.unit, member.inputs[0])
    views[first] = _shown(images, first.view.slices.count, first.view.size_px, units)
    names = tuple(f"{image.source}/{image.filename}" for image in images)
    levels = {row_of(target, unit): LEVELS.index(_level_of(target)) for target in member.targets}
    points = [{row: IMAGE.to_patient(*image.points[level]) for row, level in levels.items()} for image in images]
    return Cache(names, dict(zip(names, points, strict=True)), views)


def _missing(count: int, slices: int, size_px: int) -> CachedView:
    pixels = np.broadcast_to(np.uint8(0), (count, slices, size_px, size_px))
    return CachedView(pixels, np.zeros(count, bool), np.broadcast_to(np.nan, (count, slices, 3, 3)))


def _shown(images: Sequence[LevelImage], slices: int, size_px: int, units: int) -> CachedView:
    """Each image in every slice of its study's first unit."""
    pixels = np.empty((len(images), 1, size_px, size_px), np.uint8)
    geometry = np.empty((len(images), slices, 3, 3))
    offsets_mm = (np.arange(slices) - (slices - 1) / 2) * SLICE_STEP_MM
    for place, image in enumerate(images):
        stack = Stack("", "sagittal_t2", image.pixels[None], (IMAGE,), (1,))
        only = np.array([0])
        crops = Crops(stack, only, None, longer_side_mm(stack, only), size_px)
        pixels[place], (plane,) = crops.pixels(), crops.planes()
        geometry[place] = plane.origin_mm, plane.column_mm, plane.row_mm
        geometry[place, :, 0] += np.multiply.outer(offsets_mm, ALONG)
    places = np.repeat(np.arange(len(images)), units)
    everywhere = np.broadcast_to(pixels, (len(images), slices, size_px, size_px))
    return CachedView(everywhere, np.arange(len(places)) % units == 0, geometry[places], places)
