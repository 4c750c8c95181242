"""Samples of made-up studies, where every pixel is known: the same for the same epoch, with the right targets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels.lumbar.labels import LEVELS, ROW_INDEX, ROWS
from tests.support.networks.made_up_samples import (
    AXIAL_CROP,
    CANAL_CROP,
    CPU,
    CROP,
    ERRORS_MM,
    EVERYTHING,
    STUDIES,
    dotted,
    made_samples,
    made_up,
    recipe_of,
    same,
    textures,
)
from training.data.samples import member_samples
from training.data.samples.member_samples import MemberSamples
from training.data.soft_labels import target_masses
from training.data.tables import MISSING
from training.recipe_schema.fitting import Augmentation, Labels


def test_an_epoch_is_the_same_whatever_ran_before_and_whatever_the_number_of_threads():
    recipe = recipe_of((CANAL_CROP, CROP), EVERYTHING)
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
        (CANAL_CROP, CROP),
        Augmentation(brightness=0.5),
        targets=("spinal_canal_stenosis", "left_subarticular_stenosis"),
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
    recipe = recipe_of((CANAL_CROP, CROP), EVERYTHING)
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


def test_the_grey_scale_is_kept():
    recipe = recipe_of((CANAL_CROP, CROP), EVERYTHING)
    values = torch.cat(
        [view.flatten() for batch in made_samples(recipe, textures()).training(1) for view in batch.views]
    )
    assert values.min() >= 0 and values.max() <= 1 and values.std() > 0.15


def test_a_missing_view_is_missing_on_the_other_side_of_the_mirror():
    left = CROP.model_copy(update={"centre": ("left_subarticular_stenosis",), "mirror_right": True})
    recipe = recipe_of((CANAL_CROP, left, left.mirrored()), Augmentation(mirror=1.0), batch_size=200)
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
    samples = made_samples(recipe_of((CANAL_CROP, CROP), Augmentation()), textures())
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
    recipe = recipe_of((CANAL_CROP, CROP), EVERYTHING.model_copy(update={"noise": 0.0}), role, targets)
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
    samples = made_samples(recipe_of((CANAL_CROP, CROP)), textures(), threads=2)
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
    recipe = recipe_of((CANAL_CROP,), Augmentation(slice_jitter=1))
    recipe = recipe.model_copy(update={"fitting": recipe.fitting.model_copy(update={"loss": "valid_slices_bce"})})
    samples = made_samples(recipe, textures())
    for batch in samples.validation():
        known = batch.known_distances[:, :, 0].abs()
        assert (known == torch.tensor([1.0, 0.0, 1.0])).all(), "1 mm slices around the landmark"
    seen = {tuple(one) for batch in samples.training(1) for one in batch.known_distances[:, :, 0].abs().tolist()}
    assert (1.0, 0.0, 1.0) in seen and len(seen) > 2


def test_soft_labels_are_mixed_into_the_targets_of_training_studies_and_mirrored_with_them():
    sides = ("left_subarticular_stenosis", "right_subarticular_stenosis")
    views = (AXIAL_CROP,)
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
