"""Turned, flipped and blended batches."""

from __future__ import annotations

import pytest
import torch

from tests.support.networks.tiny_members import view
from training.data.samples.batch import Batch
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
