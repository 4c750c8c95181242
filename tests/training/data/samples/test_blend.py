"""Turned, flipped and blended batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.networks.tiny_members import view
from training.data.samples.batch import Batch, Origin
from training.data.samples.blend import blended, dihedral_some, turn_some
from training.recipe_schema.fitting import Augmentation


def numbered(count: int, size: int = 16, views: int = 1) -> Batch:
    """Images all of whose pixels are the number of their sample."""
    pixels = torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 2, size, size).clone()
    return Batch((pixels,) * views, torch.ones(count, views), torch.arange(count)[:, None])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_the_share_is_the_part_of_the_image_that_is_its_own(kind, seed):
    batch = numbered(6, views=2)
    mixed = blended(batch, Augmentation.model_validate({kind: 1.0}), 1, generator(seed))
    assert mixed.other is not None and 0 <= mixed.share <= 1
    expected = mixed.share * batch.target + (1 - mixed.share) * mixed.other
    for pixels in mixed.views:
        torch.testing.assert_close(pixels.mean((1, 2, 3)), expected[:, 0].float(), atol=1e-4, rtol=1e-4)
        if kind == "cutmix":
            inside = pixels[:, 0] != batch.target[:, :, None]
            assert (inside | (pixels[:, 0] == batch.target[:, :, None])).all()


def test_nothing_is_blended_where_a_view_is_missing():
    batch = numbered(4)
    batch.present[1] = 0
    mixed = blended(batch, Augmentation(cutmix=1.0), 1, generator(3))
    assert torch.equal(mixed.views[0][1], batch.views[0][1])


def test_labels_are_mixed_only_where_the_images_are():
    """A partner without a view gives no part of the image, so none of its label."""
    batch = numbered(8, views=2)
    batch.present[::2, 1] = 0
    mixed = blended(batch, Augmentation(cutmix=1.0), 1, generator(3))
    changed = (mixed.views[0] != batch.views[0]).flatten(1).any(1)
    assert changed.any() and torch.equal(changed, (mixed.other != batch.target)[:, 0])
    partner = mixed.other[:, 0]
    assert torch.equal(batch.present[partner], batch.present), "partners show the same views"


@pytest.mark.parametrize("seed", range(6))
def test_whole_studies_are_blended_level_by_level_with_one_other_study(seed):
    """Six studies of five levels, of which the third lacks one; a target says its study and its level."""
    places = [(study, level) for study in range(6) for level in range(5) if (study, level) != (2, 3)]
    studies, levels = torch.tensor(places).unbind(1)
    batch = numbered(len(places))
    origin = Origin(studies, torch.zeros(1, dtype=torch.long), levels)
    batch = replace(batch, target=(studies * 10 + levels)[:, None], origin=origin)
    mixed = blended(batch, Augmentation(cutmix=1.0), 1, generator(seed), whole_studies=True)
    partner, level = mixed.other[:, 0] // 10, mixed.other[:, 0] % 10
    assert torch.equal(level, levels)
    for study in range(6):
        others = set(partner[studies == study].tolist())
        assert len(others - {study}) <= 1, "one partner for all levels"
        without = partner[(studies == study) & (levels == 3)].tolist()
        assert 2 not in others or study == 2 or without == [study], "the level that its partner lacks stays as it is"
    assert len(set(partner[levels == 0].tolist())) == 6, "a permutation of the studies"


def test_blending_ends_after_its_epochs_and_follows_the_generator():
    settings = Augmentation(mixup=1.0, mixup_epochs=2)
    assert blended(numbered(4), settings, 2, generator(1)).other is not None
    assert blended(numbered(4), settings, 3, generator(1)).other is None
    one, again = (blended(numbered(4), settings, 1, generator(7)) for _ in range(2))
    assert torch.equal(one.views[0], again.views[0]) and one.share == again.share


def test_front_and_back_are_the_columns_of_sagittal_and_the_rows_of_axial_slices():
    pixels = torch.randn(2, 3, 8, 8)
    batch = Batch((pixels, pixels), torch.ones(2, 2), torch.zeros(2, 1, dtype=torch.long))
    inputs = [view(8 * 2, series="sagittal_t1"), view(8 * 2, series="axial_t2")]
    turned = turn_some(batch, inputs, torch.tensor([True, False]))
    assert torch.equal(turned.views[0][0], pixels[0].flip(-1)) and torch.equal(turned.views[1][0], pixels[0].flip(-2))
    assert torch.equal(turned.views[0][1], pixels[1])


def test_a_square_is_laid_in_one_of_eight_ways_alike_in_all_slices():
    pixels = torch.randn(1, 1, 6, 6).expand(64, 3, 6, 6)
    turned = dihedral_some(Batch((pixels,), torch.ones(64, 1), torch.zeros(64, 1)), 1.0, generator(0)).views[0]
    ways = [
        torch.rot90(pixels[0, 0], quarter).flip(-1) if flip else torch.rot90(pixels[0, 0], quarter)
        for quarter in range(4)
        for flip in (False, True)
    ]
    seen = set()
    for sample in turned:
        assert torch.equal(sample[0], sample[1]) and torch.equal(sample[0], sample[2])
        matching = [number for number, way in enumerate(ways) if torch.equal(sample[0], way)]
        assert matching
        seen.add(matching[0])
    assert len(seen) == 8
    as_it_was = dihedral_some(Batch((pixels,), torch.ones(64, 1), torch.zeros(64, 1)), 0.0, generator(0))
    assert torch.equal(as_it_was.views[0], pixels)
