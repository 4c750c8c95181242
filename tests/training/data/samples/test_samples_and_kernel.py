"""Samples of files: what the kernel makes of them, mirrored and changed with their points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.lumbar.dicom.geometry import project_points, slice_distances
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.inputs.member_inputs import InputCache
from kernels.lumbar.inputs.mirroring import mirrored_targets, mirrored_tensors
from kernels.lumbar.labels import LEVELS, UNITS, mirrored, row_of
from kernels.lumbar.specs import Member, SliceChoice, ViewRequest
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.networks.made_up_samples import CPU, ERRORS_MM, EVERYTHING
from training.data.cache.stack_cache import build_cache
from training.data.samples.member_samples import MemberSamples
from training.data.tables import MISSING, read_tables
from training.recipe_schema.fitting import Augmentation, Fitting, Network, Optimisation
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import MemberRecipe

CANAL = tuple(f"spinal_canal_stenosis_{level}" for level in LEVELS)
RECESSES = tuple(f"{side}_subarticular_stenosis_{level}" for side in ("left", "right") for level in LEVELS)


def whole(name, targets, *inputs):
    """A localiser that is fed whole stacks."""
    member = Member(name=name, role="localiser", unit="study", inputs=inputs, targets=targets, tta=("mirror",))
    optimisation = Optimisation(epochs=1, batch_size=4, learning_rate=0.001)
    fitting = Fitting(network=Network(name="none"), loss="coordinate_smooth_l1", optimisation=optimisation)
    return MemberRecipe(member=member, fitting=fitting)


def all_slices(series, normalisation, marks=(), **slices):
    choice = SliceChoice(by="all", **slices)
    return ViewRequest(series=series, slices=choice, size_px=96, normalisation=normalisation, marks=marks)


TOGETHER = {"count": 40, "fit": "pad", "stacks": "together"}
VOLUME = whole("volume", CANAL, all_slices("sagittal_t2", "zscore", count=16))
AXIAL = whole(
    "axial",
    RECESSES,
    all_slices("axial_t2", "unit", **TOGETHER),
    all_slices("axial_t2", "unit", marks=CANAL, **TOGETHER),
)
MEMBERS = (*load_named("split_and_global", "smoke").members(), VOLUME, AXIAL)
LOCALISERS = [one for one in MEMBERS if one.member.role == "localiser"]
GLOBAL = next(one for one in MEMBERS if "_global_" in one.member.name.removeprefix("split_and_global"))


def changed(recipe, augmentation, batch_size=8):
    fitting = recipe.fitting.model_copy(
        update={
            "augmentation": augmentation,
            "optimisation": recipe.fitting.optimisation.model_copy(update={"batch_size": batch_size}),
        }
    )
    return recipe.model_copy(update={"fitting": fitting})


def ids(recipe):
    return recipe.member.name.removeprefix("split_and_global_")


def held_out(samples):
    return np.concatenate(samples.validation_samples)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Folder, tables and cache of four studies; the third lacks its sagittal T2 series, the fourth some labels."""
    root = tmp_path_factory.mktemp("foreign")
    write_foreign_dataset(root, studies=4, seed=3, test_studies=0)
    tables = read_tables(root)
    studies = list(tables.labels.index)
    lost = [pair for pair in tables.series[studies[2]] if pair[1] != "sagittal_t2"]
    tables.series[studies[2]] = lost
    tables.labels.iloc[3, 3:20] = MISSING
    return root, tables, build_cache(root, tables, root / "cache", 1)


def samples_of(real, recipe):
    _, tables, cache = real
    return MemberSamples(cache, tables, recipe, cache.studies, cache.studies, CPU, 0, ERRORS_MM)


@pytest.mark.parametrize("recipe", MEMBERS, ids=ids)
def test_validation_shows_what_the_kernel_sees_at_the_true_landmarks(real, recipe):
    root, tables, cache = real
    member, units = recipe.member, UNITS[recipe.member.unit]
    samples = samples_of(real, recipe)
    batches = list(samples.validation())
    seen = 0
    for number, name in enumerate(cache.studies):
        study = read_study(root / "train_images" / name, name, tables.series[name])
        inputs = InputCache([study], [cache.landmarks[name]]).inputs_of(member)
        tensors, present = inputs.tensors, inputs.present
        for place, (_, unit) in enumerate(inputs.places):
            if not inputs.seen[place]:
                continue
            index = number * len(units) + units.index(unit)
            if index not in held_out(samples):
                continue
            seen += 1
            at = int(np.flatnonzero(held_out(samples) == index)[0])
            batch, row = batches[at // len(batches[0].target)], at % len(batches[0].target)
            assert batch.present[row].tolist() == present[place].tolist()
            for view, expected in zip(batch.views, tensors, strict=True):
                assert (view[row] - expected[place]).abs().max() < 1e-5
            names = [row_of(target, unit) for target in member.targets]
            if member.role == "grader":
                assert batch.target[row].tolist() == tables.labels.loc[name, names].tolist()
            else:
                view, marked = inputs.views[place][0], np.stack([cache.landmarks[name][one] for one in names])
                assert np.abs(batch.target[row].numpy() - project_points(view.planes, marked)).max() < 1e-3
                distances = batch.distance_mm[row].numpy()
                assert np.abs(distances[: len(view.planes)] - slice_distances(view.planes, marked)).max() < 1e-3
                assert np.isnan(distances[len(view.planes) :]).all()
                assert view.planes[0].spacing_mm == pytest.approx([float(batch.pixel_mm[row])] * 2)
    assert seen == len(held_out(samples)) == sum(len(batch.target) for batch in batches) > 0


@pytest.mark.parametrize("recipe", LOCALISERS, ids=ids)
def test_points_stay_on_what_they_mark_through_all_changes(real, recipe):
    """A bright ball sits at every landmark of the foreign data."""
    samples = samples_of(real, changed(recipe, EVERYTHING.model_copy(update={"noise": 0, "sharpen_or_blur": 0}), 4))
    at_points, elsewhere = [], []
    for batch in (batch for epoch in range(3) for batch in samples.training(epoch)):
        image, size = batch.views[0].amax(1), batch.views[0].shape[-1]
        known = batch.target.isfinite().all(-1)
        rows, columns = batch.target[..., 1:].nan_to_num().round().long().unbind(-1)
        assert ((rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)).all()
        which = torch.arange(len(image))[:, None].expand_as(rows)
        at_points.append(image[which, rows, columns][known])
        elsewhere.append(image[which, columns, size - 1 - rows][known])
    assert torch.cat(at_points).median() > torch.cat(elsewhere).quantile(0.9)


@pytest.mark.parametrize("recipe", MEMBERS, ids=ids)
def test_every_recipe_trains_on_finite_numbers(real, recipe):
    samples = samples_of(real, changed(recipe, EVERYTHING))
    batches = list(samples.training(1))
    assert len(batches) == samples.steps_per_epoch >= 1
    for batch in batches:
        assert len(batch.target) == min(8, len(np.concatenate(samples.train_samples)))
        for view, request in zip(batch.views, recipe.member.inputs, strict=True):
            assert view.shape == (len(batch.target), request.slices.count, request.size_px, request.size_px)
            assert view.dtype == torch.float32 and view.isfinite().all()
        assert batch.present.shape == (len(batch.target), len(batch.views)) and batch.present.dtype == torch.float32
        assert batch.target.dtype == (torch.int64 if recipe.member.role == "grader" else torch.float32)


def test_the_mirrored_sample_is_the_kernels_mirrored_study(real):
    plain = samples_of(real, changed(GLOBAL, Augmentation()))
    flipped = samples_of(real, changed(GLOBAL, Augmentation(mirror=1.0)))
    order = mirrored_targets(GLOBAL.member)
    assert [mirrored(GLOBAL.member.targets[place]) for place in order] == list(GLOBAL.member.targets)
    for one, other in zip(plain.training(1), flipped.training(1), strict=True):
        tensors, present = mirrored_tensors(GLOBAL.member, one.views, one.present)
        assert all((a - b).abs().max() < 1e-2 for a, b in zip(tensors, other.views, strict=True))
        assert torch.equal(present, other.present) and torch.equal(one.target[:, order], other.target)
        assert not torch.equal(one.target, other.target)


@pytest.mark.parametrize("recipe", [one for one in LOCALISERS if one.member.tta], ids=ids)
def test_mirrored_points_are_those_of_the_mirrored_study(real, recipe):
    member, request = recipe.member, recipe.member.inputs[0]
    plain = samples_of(real, changed(recipe, Augmentation()))
    flipped = samples_of(real, changed(recipe, Augmentation(mirror=1.0)))
    for one, other in zip(plain.training(1), flipped.training(1), strict=True):
        expected = one.target[:, mirrored_targets(member)].clone()
        axis, last = (2, request.size_px - 1) if request.series == "axial_t2" else (0, request.slices.count - 1)
        expected[..., axis] = last - expected[..., axis]
        assert torch.allclose(expected, other.target, atol=1e-3, equal_nan=True)
        turned = one.distance_mm[..., mirrored_targets(member)]
        turned = turned if request.series == "axial_t2" else -turned.flip(1)
        assert torch.allclose(turned, other.distance_mm, atol=1e-3, equal_nan=True)


def test_views_of_one_grid_turn_together_and_their_marks_miss_by_what_localisers_miss(real):
    turned = Augmentation(rotate_deg=40, scale=0.2)
    for batch in samples_of(real, changed(AXIAL, turned)).training(1):
        image_slices, drawn = batch.views
        for number in torch.nonzero(batch.present[:, 1]).flatten():
            middle = batch.target[number].nanmean(0)[1:]
            weight = drawn[number].sum(0)
            axis = torch.arange(96.0)
            row, column = (weight.sum(1) * axis).sum() / weight.sum(), (weight.sum(0) * axis).sum() / weight.sum()
            assert (torch.stack([row, column]) - middle).norm() < 96 * 0.1, "canal and recesses turn about one centre"
            assert image_slices[number].any()
    exact = next(samples_of(real, changed(AXIAL, Augmentation())).training(1)).views[1]
    noisy = next(samples_of(real, changed(AXIAL, Augmentation(jitter_mm="localiser"))).training(1)).views[1]
    assert exact.shape == noisy.shape and not torch.equal(exact, noisy)


def test_sided_units_are_not_mirrored(real):
    recipe = next(one for one in LOCALISERS if one.member.unit == "side")
    for one, other in zip(
        samples_of(real, changed(recipe, Augmentation())).training(1),
        samples_of(real, changed(recipe, Augmentation(mirror=1.0))).training(1),
        strict=True,
    ):
        assert torch.equal(one.views[0], other.views[0]) and torch.equal(one.target, other.target)
