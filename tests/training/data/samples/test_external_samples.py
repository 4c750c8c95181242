"""What networks are shown of published images: points where every slice shows them, through all changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.lumbar.specs import ViewRequest
from tests.support.networks.pretraining_images import CANAL, CPU, FORAMEN, localiser, view, write_pretraining
from training.data.external import read_pretraining
from training.data.samples.external_samples import PretrainingSamples, pretrainable
from training.recipe_schema.fitting import Augmentation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The published images' stand-ins."""
    return write_pretraining(tmp_path)


def grey_at(image: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    rows, columns = points[:, 1:].round().long().unbind(1)
    return image[rows, columns]


@pytest.mark.parametrize("size_px", [48, 97])
@pytest.mark.parametrize(
    ("request_", "targets", "unit"),
    [
        (dict(count=3), CANAL, "study"),
        (dict(by="all", count=4, fit="pad"), CANAL, "study"),
        (dict(series="sagittal_t1", by="offset", count=1, offset_mm=16), FORAMEN, "side"),
    ],
)
def test_points_lie_where_every_slice_shows_them(folder, request_, targets, unit, size_px):
    recipe = localiser((view(size_px=size_px, **request_),), targets, unit)
    samples = PretrainingSamples(read_pretraining(folder), recipe, CPU, seed=1)
    batches = [*samples.training(1), *samples.validation()]
    count = recipe.member.inputs[0].slices.count
    assert sum(len(batch.target) for batch in samples.validation()) == 1
    shown = [(image, points) for batch in batches for image, points in zip(batch.views[0], batch.target, strict=True)]
    assert len(shown) >= 3
    for image, points in shown:
        assert image.shape == (count, size_px, size_px) and (image == image[0]).all()
        assert grey_at(image[0], points).min() > 0.6 > 0.3 > image[0].median()
        assert (points[:, 0] == (count - 1) / 2).all()
    for batch in batches:
        assert batch.pixel_mm is None, "the spacing of published images is unknown"
        assert batch.distance_mm.shape == (len(batch.target), count, 5) and batch.distance_mm.abs().max() < 1e-2


def test_the_longer_side_fills_the_view_and_the_rest_is_black(folder):
    samples = PretrainingSamples(read_pretraining(folder), localiser((view(),)), CPU, 0, sources=["spider", "lsd"])
    images = torch.cat([batch.views[0][:, 0] for batch in (*samples.training(1), *samples.validation())])
    black = images < 0.02
    assert len(images) == 2
    # Two thirds as wide as high, and the other way round.
    assert sorted(black.all(1).sum(1).tolist()) == [0, 16] == sorted(black.all(2).sum(1).tolist())


def test_points_stay_on_the_dots_through_all_changes(folder):
    changes = Augmentation(rotate_deg=20, shear_deg=10, scale=0.2, slice_shuffle=1, mirror=0.5, brightness=0.05)
    samples = PretrainingSamples(read_pretraining(folder), localiser((view(size_px=64),), augmentation=changes), CPU, 3)
    seen = []
    for batch in (batch for epoch in range(6) for batch in samples.training(epoch)):
        for image, points in zip(batch.views[0], batch.target, strict=True):
            seen.append(grey_at(image[0], points[points[:, 1:].isfinite().all(1)]))
    assert torch.cat(seen).quantile(0.1) > 0.6 and len(torch.cat(seen)) > 30


def test_other_views_are_missing(folder):
    marked = ViewRequest(series="axial_t2", slices={"by": "middle", "count": 2}, size_px=32)
    around = ViewRequest(
        series="sagittal_t1",
        centre=("left_neural_foraminal_narrowing_l1_l2",),
        slices={"by": "offset", "count": 1, "offset_mm": 15},
        size_px=32,
        size_mm=50,
    )
    samples = PretrainingSamples(read_pretraining(folder), localiser((view(), marked, around)), CPU, 0)
    (batch,) = samples.training(1)
    assert batch.present.tolist() == [[1, 0, 0]] * 2
    assert not batch.views[1].any() and not batch.views[2].any() and batch.views[0].std() > 0
    assert [tuple(one.shape) for one in batch.views] == [(2, 3, 48, 48), (2, 2, 32, 32), (2, 1, 32, 32)]


def test_the_same_seed_and_epoch_give_the_same_batches(folder):
    recipe = localiser((view(normalisation="zscore"),), augmentation=Augmentation(rotate_deg=9, noise=0.1))
    images = read_pretraining(folder)

    def batch(seed, epoch):
        return next(PretrainingSamples(images, recipe, CPU, seed).training(epoch))

    one, again = batch(1, 2), batch(1, 2)
    assert torch.equal(one.views[0], again.views[0]) and torch.equal(one.target, again.target)
    assert not torch.equal(one.views[0], batch(1, 3).views[0])
    assert one.views[0].mean().abs() < 1e-4 and abs(one.views[0][0].std(correction=0) - 1) < 1e-3
    held_out = [PretrainingSamples(images, recipe, CPU, seed).validation_samples for seed in range(8)]
    assert len({tuple(index.item() for index in one) for one in held_out}) > 1


def test_networks_that_such_images_cannot_teach_are_refused(folder):
    images = read_pretraining(folder)
    axial = localiser((view("axial_t2"),), ("left_subarticular_stenosis", "right_subarticular_stenosis"), "level")
    with pytest.raises(ValueError, match="canal: pretraining is for localisers that find points in whole sagittal"):
        PretrainingSamples(images, axial, CPU, 0)
    for targets, unit in ((CANAL[:4], "study"), ((*CANAL[:4], "left_neural_foraminal_narrowing_l5_s1"), "study")):
        with pytest.raises(ValueError, match="pretraining needs five targets"):
            pretrainable(localiser((view(),), targets, unit).member)
    with pytest.raises(ValueError, match="canal: pretraining has 1 images of osf"):
        PretrainingSamples(images, localiser((view(),)), CPU, 0, sources=["osf"])
