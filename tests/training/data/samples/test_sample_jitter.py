"""Crops and slices are off by what localisers miss by, and points move with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.lumbar.specs import SliceChoice, ViewRequest
from tests.support.networks.made_up_samples import (
    AXIAL_CROP,
    CROP,
    ERRORS_MM,
    EVERYTHING,
    dotted,
    made_samples,
    ramp,
    recipe_of,
)
from training.recipe_schema.fitting import Augmentation


def test_crops_are_jittered_by_what_localisers_miss_by(caplog):
    def spread_px(jitter_mm, errors):
        recipe = recipe_of(augmentation=Augmentation(jitter_mm=jitter_mm))
        found = []
        for axis in (1, 2):
            samples = made_samples(recipe, ramp(axis), errors=errors)
            batches = [batch.views[0] for epoch in range(4) for batch in samples.training(epoch)]
            found.append((torch.cat(batches)[:, 1, 15:17, 15:17].mean((1, 2)) * 51).std().item())
        return found

    assert spread_px(0.0, ERRORS_MM) == pytest.approx([0, 0], abs=1e-4)
    assert spread_px(1.0, {}) == pytest.approx([2, 2], rel=0.1)  # 1 mm are 2 pixels
    assert spread_px("localiser", {"axial_t2": 0.5, "sagittal_t2": 3.0}) == pytest.approx([1, 1], rel=0.1)
    assert not caplog.text
    assert spread_px("localiser", {"sagittal_t2": 3.0}) == pytest.approx([0, 0], abs=1e-4)
    assert "no localisation error is known for axial_t2" in caplog.text


@pytest.mark.parametrize("jitter", [0, 1, 4])
def test_windows_are_jittered_by_as_many_slices_as_the_recipe_says(jitter):
    pixels = np.broadcast_to(np.arange(15)[:, None, None] * 15, (15, 48, 48)).astype(np.uint8)
    samples = made_samples(recipe_of(augmentation=Augmentation(slice_jitter=jitter)), pixels)
    slices = torch.cat([batch.views[0] for batch in samples.training(1)])[:, :, 16, 16] * 255 / 15
    assert set(slices[:, 0].round().long().tolist()) == set(range(6 - jitter, 7 + jitter))
    assert (slices - slices[:, :1] - torch.arange(3)).abs().max() < 1e-3


@pytest.mark.parametrize(("near", "group"), [((), "subarticular"), (("spinal_canal_stenosis",), "spinal")])
def test_slices_are_drawn_from_what_localisers_miss_of_the_landmarks_that_choose_them(near, group):
    """Slices of 1 mm run to the feet.  The errors of other landmarks, and those within the slices, change nothing."""
    measured = {name: np.array([[9.0, 9.0, 5.0]]) for name in ("spinal", "subarticular", "foraminal")}
    measured[group] = np.array([[3.0, -2.0, 2.0], [0.0, 0.0, 0.0], [0.0, 4.0, -1.0], [1.0, 0.0, -1.0]])
    pixels = np.broadcast_to(np.arange(15)[:, None, None] * 15, (15, 48, 48)).astype(np.uint8)
    view = CROP.model_copy(update={"slices": CROP.slices.model_copy(update={"near": near})})
    recipe = recipe_of((view,), Augmentation(slice_jitter="localiser"))
    samples = made_samples(recipe, pixels, offsets=measured)
    slices = torch.cat([batch.views[0] for epoch in range(4) for batch in samples.training(epoch)])[:, 1, 16, 16]
    middle = (slices * 255 / 15).round().long()
    counts = torch.bincount(middle, minlength=15)
    assert counts.nonzero()[:, 0].tolist() == [5, 7, 8]
    assert (counts[[5, 7, 8]] / len(middle)).tolist() == pytest.approx([0.25, 0.25, 0.5], abs=0.06)


def test_whole_images_of_a_second_wave_are_off_as_their_sources_are():
    """A localiser on the slice nearest to another one's landmark; its targets stay where they are in the image."""
    choice = SliceChoice(by="landmark", count=1, near=("spinal_canal_stenosis",))
    view = ViewRequest(series="axial_t2", slices=choice, size_px=48, normalisation="unit")
    targets = ("left_subarticular_stenosis", "right_subarticular_stenosis")
    recipe = recipe_of((view,), Augmentation(slice_jitter="localiser"), "localiser", targets)
    measured = {"spinal": np.array([[3.0, -2.0, 2.0], [0.0, 4.0, -1.0]]), "subarticular": np.array([[0.0, 0.0, 5.0]])}
    pixels = np.broadcast_to(np.arange(15)[:, None, None] * 15, (15, 48, 48)).astype(np.uint8)
    samples = made_samples(recipe, pixels, offsets=measured)
    (still,) = {tuple(target[0, 1:].tolist()) for batch in samples.validation() for target in batch.target}
    seen = set()
    for batch in samples.training(1):
        seen |= set((batch.views[0][:, 0, 16, 16] * 255 / 15).round().long().tolist())
        assert batch.target[:, 0, 1:].unique(dim=0).tolist() == [list(still)]
    assert seen == {5, 8}


def test_slices_that_no_landmark_chooses_are_those_of_the_kernel(caplog):
    pixels = np.broadcast_to(np.arange(15)[:, None, None] * 15, (15, 48, 48)).astype(np.uint8)
    middle = CROP.model_copy(update={"slices": SliceChoice(by="middle", count=3)})
    changes = Augmentation(slice_jitter="localiser")
    offsets = {"subarticular": np.array([[0.0, 0.0, 3.0]])}
    for batch in made_samples(recipe_of((middle,), changes), pixels, offsets=offsets).training(1):
        assert (batch.views[0][:, 1, 16, 16] * 255 / 15).round().unique().tolist() == [7]
    assert not caplog.text
    made_samples(recipe_of((CROP,), changes), pixels)
    assert "no localisation error is known for subarticular landmarks" in caplog.text


@pytest.mark.parametrize("augmentation", [Augmentation(), EVERYTHING.model_copy(update={"noise": 0.0})])
def test_points_of_crops_move_with_rotation_jitter_and_slices(augmentation):
    """A localiser that looks at a crop: its points lie in the crop."""
    targets = ("left_subarticular_stenosis", "right_subarticular_stenosis")
    recipe = recipe_of((AXIAL_CROP,), augmentation.model_copy(update={"slice_shuffle": 0.0}), "localiser", targets)
    landmarks, image = dotted([(2, 20, 30), (2, 27, 16)])
    samples = made_samples(recipe, image, landmarks=landmarks)
    for batch in samples.validation():
        assert batch.target[0].tolist() == [[1, 12, 22], [1, 19, 8]]
    known = 0
    for batch in samples.training(1):
        for sample, points in zip(batch.views[0], batch.target, strict=True):
            for point in points[points.isfinite().all(1)]:
                slice_, row, column = point.round().long().tolist()
                assert 0 <= slice_ <= 2
                near = sample[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].amax((1, 2))
                assert near.argmax() == slice_ and near[slice_] > sample.mean() + 3 * sample.std()
                known += 1
    assert known > 200


def test_points_outside_the_crop_are_unknown():
    recipe = recipe_of((AXIAL_CROP,), None, "localiser", ("left_subarticular_stenosis", "right_subarticular_stenosis"))
    landmarks, image = dotted([(2, 20, 30), (2, 3, 40)])
    batch = next(iter(made_samples(recipe, image, landmarks=landmarks).validation()))
    assert batch.target[:, 0].isfinite().all() and batch.target[:, 1].isnan().all()
    for points in landmarks.values():
        for row in [row for row in points if row.startswith("left")]:
            points[row] = np.array([500.0, 0, 0])  # outside of the image as well
    with pytest.raises(ValueError, match="no training study has both"):
        made_samples(recipe, image, landmarks=landmarks)
