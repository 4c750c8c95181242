"""Samples: the kernel's inputs with the right targets, changed at random, the same for the same epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kernels.lumbar.dicom.geometry import Plane, lift_points, project_points, slice_distances
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.dicom.study import Stack, Study
from kernels.lumbar.inputs.member_inputs import InputCache
from kernels.lumbar.inputs.mirroring import mirrored_targets, mirrored_tensors
from kernels.lumbar.labels import LEVELS, ROW_INDEX, ROWS, UNITS, Unit, mirrored, row_of
from kernels.lumbar.specs import Member, SliceChoice, ViewRequest
from tests.support.dicom.dicom_factory import write_foreign_dataset
from training.data.cache.stack_cache import StackCache, build_cache
from training.data.samples import member_samples
from training.data.samples.member_samples import MemberSamples
from training.data.soft_labels import target_masses
from training.data.tables import MISSING, Tables, read_tables
from training.recipe_schema.fitting import Augmentation, Fitting, Labels, Network, Optimisation
from training.recipe_schema.load import load_named
from training.recipe_schema.schema import MemberRecipe

CPU = torch.device("cpu")
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


# What the kernel makes of real files.


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


# What can be said of made-up studies, where every pixel is known.

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
CANAL = CROP.model_copy(update={"series": "sagittal_t2", "centre": ("spinal_canal_stenosis",)})
AT_CANAL = CROP.model_copy(update={"centre": ("spinal_canal_stenosis",)})
STUDIES = tuple(str(number) for number in range(40))


def recipe_of(views=(CROP,), augmentation=None, role="grader", targets=("spinal_canal_stenosis",), batch_size=16):
    member = Member(name="one", role=role, unit="level", inputs=views, targets=targets)
    optimisation = Optimisation(epochs=1, batch_size=batch_size, learning_rate=1e-3)
    loss = "weighted_cross_entropy" if role == "grader" else "heatmap_mse"
    network = Network(name="none")
    augmentation = augmentation or Augmentation()
    return MemberRecipe(
        member=member,
        fitting=Fitting(network=network, loss=loss, optimisation=optimisation, augmentation=augmentation),
    )


def grid(shape):
    """Planes of a stack around zero, 1 mm apart, with pixels of 0.5 mm: crops of 0.5 mm a pixel have its own pixels."""
    slices, height, width = shape
    corner = [-(width - 1) / 4, -(height - 1) / 4, (slices - 1) / 2]
    steps = np.array([0.5, 0, 0]), np.array([0, 0.5, 0])
    return tuple(Plane(np.add(corner, [0, 0, -place]), *steps) for place in range(slices))


def made_up(recipe, pixels, missing=None, labels=None, landmarks=None, studies=STUDIES):
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
    recipe,
    pixels,
    train=STUDIES,
    held_out=STUDIES,
    seed=0,
    errors=ERRORS_MM,
    device=CPU,
    threads=1,
    offsets=None,
    **what,
):
    cache, tables = made_up(recipe, pixels, **what)
    return MemberSamples(cache, tables, recipe, train, held_out, device, seed, errors, threads, offsets)


def textures(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (5, 48, 48)).astype(np.uint8)


def ramp(axis):
    """(5, 48, 48) whose value says the place along an axis."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return np.broadcast_to(np.arange((5, 48, 48)[axis]).reshape(shape) * (50 if axis == 0 else 5), (5, 48, 48)).astype(
        np.uint8
    )


def same(one, other):
    pairs = [*zip(one.views, other.views, strict=True), (one.present, other.present)]
    return all(torch.equal(a, b) for a, b in pairs) and torch.allclose(one.target, other.target, equal_nan=True)


def test_an_epoch_is_the_same_whatever_ran_before_and_whatever_the_number_of_threads():
    recipe = recipe_of((CANAL, CROP), EVERYTHING)
    samples = made_samples(recipe, textures())
    first, second = list(samples.training(1)), list(samples.training(2))
    list(samples.validation())
    torch.manual_seed(5)
    fresh = made_samples(recipe, textures(), threads=3)
    assert all(same(a, b) for a, b in zip(second, fresh.training(2), strict=True))
    assert all(same(a, b) for a, b in zip(first, fresh.training(1), strict=True))
    assert not any(same(a, b) for a, b in zip(first, second, strict=True))
    assert not any(same(a, b) for a, b in zip(first, made_samples(recipe, textures(), seed=1).training(1), strict=True))


def test_samples_without_a_label_or_a_view_are_left_out():
    recipe = recipe_of(
        (CANAL, CROP), Augmentation(brightness=0.5), targets=("spinal_canal_stenosis", "left_subarticular_stenosis")
    )
    labels = np.zeros((40, 25), int)
    spinal = [ROWS.index(f"spinal_canal_stenosis_{level}") for level in LEVELS]
    left = [ROWS.index(f"left_subarticular_stenosis_{level}") for level in LEVELS]
    labels[0, spinal] = MISSING
    labels[1, spinal] = labels[1, left] = MISSING
    whole, lost = [(2, level) for level in range(5)], [(3, level) for level in range(5)]
    what = {"labels": labels, "missing": {0: whole + lost, 1: whole}}
    samples = made_samples(recipe, textures(), STUDIES[:4], STUDIES[:1], **what)
    assert np.concatenate(samples.train_samples).tolist() == [*range(5), *range(15, 20)]
    (held_out,) = samples.validation()
    assert held_out.target.tolist() == [[MISSING, 0]] * 5
    (batch,) = (made_samples(recipe, textures(), STUDIES[3:7], (), **what)).training(1)
    missing = batch.present[:, 0] == 0
    assert missing.sum() >= 1 and (batch.present[:, 1] == 1).all()
    assert not batch.views[0][missing].any() and (batch.views[0][~missing].flatten(1) > 0).any(1).all()
    with pytest.raises(ValueError, match="no training study has both a label and an image"):
        made_samples(recipe, textures(), STUDIES[1:3], STUDIES, **what)


def test_a_missing_view_is_black_whatever_was_in_memory(monkeypatch):
    recipe = recipe_of((CANAL, CROP), EVERYTHING)
    cutter = made_samples(recipe, textures(), missing={0: [(0, 2)]}).cutter
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: torch.full(shape, 7, dtype=dtype))
    for changes in (None, cutter.draw(5, torch.Generator().manual_seed(0))):
        canal, crop = cutter.cut(range(5), changes).views
        assert [bool(view.any()) for view in canal] == [True, True, False, True, True]
        assert crop.flatten(1).any(1).all()


def test_labels_stay_with_their_pictures():
    """The grey of each view says its sample: each level has five slices of its own."""
    recipe = recipe_of(batch_size=10)
    depths = {level: {f"{side}_subarticular_stenosis_{level}" for side in ("left", "right")} for level in LEVELS}
    landmarks = {
        name: np.array([0, 0, 10.0 - 5 * place]) for place, level in enumerate(LEVELS) for name in depths[level]
    }
    cache, tables = made_up(recipe, np.zeros((25, 48, 48), np.uint8), landmarks=dict.fromkeys(STUDIES, landmarks))
    decoded = []
    for number, study in enumerate(cache.decoded):
        grey = np.repeat(np.arange(5) + 5 * number, 5).astype(np.uint8)[:, None, None]
        pixels = np.broadcast_to(grey, (25, 48, 48))
        decoded.append(replace(study, stacks=(replace(study.stacks[0], pixels=pixels),)))
    samples = MemberSamples(
        replace(cache, decoded=tuple(decoded)), tables, recipe, STUDIES, STUDIES, CPU, 0, ERRORS_MM, threads=3
    )
    severities = torch.from_numpy(samples.severities[:, 0])
    seen = []
    for batch in samples.training(3):
        which = (batch.views[0].mean((1, 2, 3)) * 255).round().long()
        assert torch.equal(batch.target[:, 0], severities[which])
        seen += which.tolist()
    assert sorted(seen) == list(range(200)) and seen != sorted(seen)
    assert len(list(made_samples(recipe_of(batch_size=64), textures()).training(1))) == 200 // 64


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


def test_the_grey_scale_is_kept():
    recipe = recipe_of((CANAL, CROP), EVERYTHING)
    values = torch.cat(
        [view.flatten() for batch in made_samples(recipe, textures()).training(1) for view in batch.views]
    )
    assert values.min() >= 0 and values.max() <= 1 and values.std() > 0.15


def dotted(points):
    """Landmarks in mm of every study, and the (5, 48, 48) image that has a dot at each, in its slice alone."""
    slices, rows, columns = np.meshgrid(np.arange(5), np.arange(48), np.arange(48), indexing="ij")
    image = sum(
        255 * np.exp(-0.5 * (((rows - r) / 1.2) ** 2 + ((columns - c) / 1.2) ** 2)) * (slices == s)
        for s, r, c in points
    )
    mm = lift_points(grid((5, 48, 48)), np.array(points, float))
    names = [f"{side}_subarticular_stenosis_{level}" for level in LEVELS for side in ("left", "right")]
    return {study: dict(zip(names, [*mm] * 5, strict=True)) for study in STUDIES}, image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("augmentation", [Augmentation(), EVERYTHING.model_copy(update={"noise": 0.0})])
def test_points_of_crops_move_with_rotation_jitter_and_slices(augmentation):
    """A localiser that looks at a crop: its points lie in the crop."""
    targets = ("left_subarticular_stenosis", "right_subarticular_stenosis")
    recipe = recipe_of((AT_CANAL,), augmentation.model_copy(update={"slice_shuffle": 0.0}), "localiser", targets)
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
    recipe = recipe_of((AT_CANAL,), None, "localiser", ("left_subarticular_stenosis", "right_subarticular_stenosis"))
    landmarks, image = dotted([(2, 20, 30), (2, 3, 40)])
    batch = next(iter(made_samples(recipe, image, landmarks=landmarks).validation()))
    assert batch.target[:, 0].isfinite().all() and batch.target[:, 1].isnan().all()
    for points in landmarks.values():
        for row in [row for row in points if row.startswith("left")]:
            points[row] = np.array([500.0, 0, 0])  # outside of the image as well
    with pytest.raises(ValueError, match="no training study has both"):
        made_samples(recipe, image, landmarks=landmarks)


def test_a_missing_view_is_missing_on_the_other_side_of_the_mirror():
    left = CROP.model_copy(update={"centre": ("left_subarticular_stenosis",), "mirror_right": True})
    recipe = recipe_of((CANAL, left, left.mirrored()), Augmentation(mirror=1.0), batch_size=200)
    first, second = ([(study, level) for study in some for level in range(5)] for some in (range(10), range(10, 12)))
    samples = made_samples(recipe, textures(), missing={1: first, 2: second})
    (batch,) = samples.training(1)
    assert batch.present.sum(0).tolist() == [200, 190, 150]
    (batch,) = samples.validation()
    assert batch.present.sum(0).tolist() == [200, 150, 190]


def test_mirroring_what_has_no_partner_is_refused():
    left = CROP.model_copy(update={"centre": ("left_subarticular_stenosis",), "mirror_right": True})
    mirror = Augmentation(mirror=0.5)
    with pytest.raises(ValueError, match="mirror needs each view and target of a side together with the other one's"):
        made_samples(recipe_of((left,), mirror), textures())
    with pytest.raises(ValueError, match="mirror needs each view and target"):
        made_samples(recipe_of((CROP,), mirror, targets=("left_subarticular_stenosis",)), textures())
    with pytest.raises(ValueError, match="first view shows both sides"):
        made_samples(recipe_of((left, left.mirrored()), mirror, role="localiser"), textures())


def test_batches_do_not_change_after_they_were_given():
    samples = made_samples(recipe_of((CANAL, CROP), Augmentation()), textures())
    for run in (samples.validation, lambda: samples.training(1)):
        copies = [[view.clone() for view in batch.views] for batch in run()]
        kept = [batch.views for batch in list(run())]
        assert all(
            torch.equal(a, b) for one, other in zip(copies, kept, strict=True) for a, b in zip(one, other, strict=True)
        )


@pytest.mark.parametrize("role", ["grader", "localiser"])
def test_all_changes_happen_on_the_device(role):
    """The meta device refuses to mix with the CPU, as a GPU does."""
    targets = ("left_subarticular_stenosis", "right_subarticular_stenosis")
    landmarks, _ = dotted([(2, 20, 30), (2, 27, 16)])
    recipe = recipe_of((CANAL, CROP), EVERYTHING.model_copy(update={"noise": 0.0}), role, targets)
    samples = made_samples(recipe, textures(), device=torch.device("meta"), landmarks=landmarks)
    for batch in [*samples.training(1), *samples.validation()]:
        assert all(part.device.type == "meta" for part in (*batch.views, batch.present, batch.target))


def test_whole_studies_come_together_and_say_whose_levels_they_are():
    recipe = recipe_of(batch_size=4)
    optimisation = recipe.fitting.optimisation.model_copy(update={"whole_studies": True})
    recipe = recipe.model_copy(update={"fitting": recipe.fitting.model_copy(update={"optimisation": optimisation})})
    samples = made_samples(recipe, textures(), missing={0: [(1, 2)]})
    assert samples.steps_per_epoch == 10
    sizes = [len(batch.target) for batch in samples.training(1)]
    assert sorted(sizes) == [19] + [20] * 9
    for batch in samples.training(1):
        counts = torch.bincount(batch.origin.studies)
        assert len(counts) == 4 and set(counts.tolist()) <= {4, 5}
        assert batch.origin.groups.tolist() == [0], "the canal"
    assert sum(len(batch.target) for batch in samples.validation()) == 199


@pytest.mark.parametrize("kept_bytes", [0, 1 << 28])
def test_every_validation_is_the_same_whether_its_pixels_are_kept_or_not(kept_bytes, monkeypatch):
    monkeypatch.setattr(member_samples, "MOST_KEPT_BYTES", kept_bytes)
    samples = made_samples(recipe_of((CANAL, CROP)), textures(), threads=2)
    cut = []
    monkeypatch.setattr(samples.cutter, "cut", lambda *given, whole=samples.cutter.cut: cut.append(1) or whole(*given))
    first, second = list(samples.validation()), list(samples.validation())
    assert all(same(one, other) for one, other in zip(first, second, strict=True))
    assert len(cut) == len(first) * (1 if kept_bytes else 2)


def test_only_training_batches_are_blended():
    recipe = recipe_of(augmentation=Augmentation(cutmix=1.0))
    samples = made_samples(recipe, textures())
    assert all(batch.other is not None for batch in samples.training(1))
    assert all(batch.other is None for batch in samples.validation())


def test_cutmix_of_whole_studies_keeps_levels_together():
    """Published: p = 1, one permutation of the studies of a batch."""
    recipe = recipe_of(augmentation=Augmentation(cutmix=1.0), batch_size=4)
    optimisation = recipe.fitting.optimisation.model_copy(update={"whole_studies": True})
    recipe = recipe.model_copy(update={"fitting": recipe.fitting.model_copy(update={"optimisation": optimisation})})
    # A label says its level.
    labels = np.stack([np.array([LEVELS.index(row[-5:]) % 3 for row in ROWS])] * 40)
    for batch in made_samples(recipe, textures(), labels=labels, missing={0: [(1, 2)]}).training(1):
        assert torch.equal(batch.other, batch.target) and 0 < batch.share < 1
        assert torch.equal(batch.origin.units % 3, batch.target[:, 0])


def test_losses_by_slice_know_how_far_each_slice_lies_from_the_target():
    recipe = recipe_of((CANAL,), Augmentation(slice_jitter=1))
    recipe = recipe.model_copy(update={"fitting": recipe.fitting.model_copy(update={"loss": "valid_slices_bce"})})
    samples = made_samples(recipe, textures())
    for batch in samples.validation():
        known = batch.known_distances[:, :, 0].abs()
        assert (known == torch.tensor([1.0, 0.0, 1.0])).all(), "1 mm slices around the landmark"
    seen = {tuple(one) for batch in samples.training(1) for one in batch.known_distances[:, :, 0].abs().tolist()}
    assert (1.0, 0.0, 1.0) in seen and len(seen) > 2


def test_soft_labels_are_mixed_into_the_targets_of_training_studies_and_mirrored_with_them():
    sides = ("left_subarticular_stenosis", "right_subarticular_stenosis")
    views = (AT_CANAL,)
    labels = np.full((40, 25), MISSING)
    labels[0] = 1
    answers = np.random.default_rng(0).dirichlet([1, 1, 1], (40, 25))
    answers[2] = np.nan  # neither label nor answer
    soft = {study: rows for study, rows in zip(STUDIES, answers, strict=True) if study != STUDIES[3]}
    cache, tables = made_up(recipe_of(views, targets=sides), textures(), labels=labels)

    def samples(mirror, share=0.5):
        recipe = recipe_of(views, Augmentation(mirror=mirror), targets=sides, batch_size=10)
        recipe = recipe.with_fitting(labels=Labels(soft=share))
        given = (cache, tables, recipe, STUDIES[:4], STUDIES[:1], CPU, 0, ERRORS_MM, 1, None, soft)
        return MemberSamples(*given)

    plain = samples(0.0)
    assert np.concatenate(plain.train_samples).tolist() == list(range(10))  # two studies with anything known
    (batch,), (flipped,) = plain.training(1), samples(1.0).training(1)
    assert batch.target.shape == (10, 2, 3) and torch.equal(flipped.target, batch.target[:, [1, 0]])
    assert not torch.equal(flipped.target, batch.target)
    rows = [[ROW_INDEX[f"{side}_{level}"] for side in sides] for level in LEVELS]
    expected = [target_masses(labels[study][rows], answers[study][rows], 0.5) for study in (0, 1)]
    order = np.concatenate(expected).reshape(-1, 6)
    found = batch.target.numpy().reshape(-1, 6)
    np.testing.assert_allclose(found[np.lexsort(found.T)], order[np.lexsort(order.T)], atol=1e-6)
    # None of a held-out study, whose score is by its labels alone.
    held_out_soft = {study: rows for study, rows in soft.items() if study != STUDIES[0]}
    recipe = recipe_of(views, targets=sides).with_fitting(labels=Labels(soft=0.5))
    own = MemberSamples(cache, tables, recipe, STUDIES[1:4], STUDIES[:1], CPU, 0, ERRORS_MM, 1, None, held_out_soft)
    (held_out,) = own.validation()
    assert held_out.target.tolist() == [[[0, 2, 0]] * 2] * 5
