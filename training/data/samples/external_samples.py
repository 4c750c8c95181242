"""Published single slices (training/data/external.py) as samples for pretraining a localiser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from kernels.lumbar.dicom.geometry import CANONICAL_AXES, Plane, body_plane
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.inputs.crops import Crops, longer_side_mm
from kernels.lumbar.inputs.views import View
from kernels.lumbar.labels import LEVELS, UNITS, row_of
from kernels.lumbar.specs import Member, ViewRequest
from training.data.cache.stack_cache import StackCache
from training.data.external import SOURCES, LevelImage, LevelImages
from training.data.samples.cut_batches import Cutter
from training.data.samples.member_samples import MemberSamples
from training.data.tables import Tables
from training.recipe_schema.schema import MemberRecipe

HELD_OUT = 0.1
COLUMNS_TO, ROWS_TO, ALONG = CANONICAL_AXES["sagittal"]
# The images' spacing is unknown; 1 mm a pixel is assumed, and nothing depends on it.
IMAGE = Plane(np.zeros(3), COLUMNS_TO, ROWS_TO)
# All slices of a view show one place; they are a little apart, so that they have an order.
SLICE_STEP_MM = 1e-4


class ImageCutter(Cutter):
    """Shows each image in every slice of its study's first view; of networks of one side, in that of the left one."""

    knows_spacing = False

    def place(self, index: int) -> list[View | None]:
        """The first view, scaled so that the image fills it; the others are missing."""
        study, unit = divmod(index, len(self.units))
        (stack,), first = self.cache.decoded[study].stacks, self.member.inputs[0]
        slices = range(first.slices.count)
        crops = Crops(stack, slices, None, longer_side_mm(stack, slices), first.size_px)
        shown = View(first, (crops,)) if unit == 0 else None
        return [shown, *[None] * (len(self.member.inputs) - 1)]


class PretrainingSamples(MemberSamples):
    """Samples of images with a point at each level, for localisers that pass `pretrainable`.

    Each image becomes a study: every slice of the first view shows it, scaled to fill the view, and the other views are
    missing.  Targets are the points of their levels, in the middle slice, at distance 0 from all.  These are points of
    the canal; foramina lie in front of it at about the same height.  Augmentation, normalisation and order are those of
    MemberSamples.  A tenth of the images, drawn by the seed, is held out.
    """

    cutter_type = ImageCutter

    def __init__(
        self,
        images: LevelImages,
        recipe: MemberRecipe,
        device: torch.device,
        seed: int,
        sources: Sequence[str] = SOURCES,
        threads: int = 1,
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
        super().__init__(cache, unlabelled, recipe, train, validation, device, seed, {}, threads)


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


def _as_cache(images: Sequence[LevelImage], member: Member) -> StackCache:
    """The images as studies with one stack, that of the first view; for networks of one side, as left sides."""
    unit = UNITS[member.unit][0]
    names = tuple(f"{image.source}/{image.filename}" for image in images)
    levels = {row_of(target, unit): LEVELS.index(_level_of(target)) for target in member.targets}
    points = [{row: IMAGE.to_patient(*image.points[level]) for row, level in levels.items()} for image in images]
    studies = tuple(_as_study(name, image, member.inputs[0]) for name, image in zip(names, images, strict=True))
    return StackCache(names, studies, dict(zip(names, points, strict=True)))


def _as_study(name: str, image: LevelImage, request: ViewRequest) -> Study:
    """The image as every slice of a stack, without copies."""
    count = request.slices.count
    offsets_mm = (np.arange(count) - (count - 1) / 2) * SLICE_STEP_MM
    planes = tuple(Plane(IMAGE.origin_mm + offset * ALONG, IMAGE.column_mm, IMAGE.row_mm) for offset in offsets_mm)
    pixels = np.broadcast_to(image.pixels, (count, *image.pixels.shape))
    stack = Stack("", request.series, pixels, planes, instances=tuple(range(count)))
    return Study(name, (stack,), [])
