"""Grey windows equal np.percentile's; normalisations are what their names say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kernels.lumbar.dicom.grey_window import grey_window, to_uint8
from kernels.lumbar.inputs.normalise import normalise


@given(arrays(np.uint16, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))))
def test_window_is_that_of_np_percentile(volume):
    low, high = (int(np.percentile(volume, q, method=how)) for q, how in ((0.5, "lower"), (99.5, "higher")))
    if low == high:
        low, high = int(volume.min()), int(volume.max())
    assert grey_window(list(volume)) == (low, high)


@pytest.mark.parametrize("top", [1, 200, 4095, 65535])
def test_grey_levels_rise_linearly_within_the_window(top):
    random = np.random.default_rng(top)
    volume = random.integers(0, top, (3, 50, 40), endpoint=True).astype(np.uint16)
    low, high = grey_window(volume)
    expected = np.clip((volume.astype(float) - low) * 255 / (high - low), 0, 255)
    grey = to_uint8(volume, (low, high))
    assert grey.dtype == np.uint8
    assert np.abs(grey - expected).max() <= 0.5 + 1e-3
    assert (grey.min(), grey.max()) == (0, 255)


def test_a_narrow_window_on_high_values_keeps_its_ends():
    volume = np.repeat(np.arange(60000, 60004, dtype=np.uint16), 200).reshape(1, 20, 40)
    assert np.unique(to_uint8(volume, (60001, 60002))).tolist() == [0, 255]
    assert np.unique(to_uint8(volume, (60000, 60003))).tolist() == [0, 85, 170, 255]


def test_a_few_bright_pixels_still_make_a_picture():
    volume = np.zeros((1, 100, 100), np.uint16)
    volume[0, :2, :2] = 900
    assert grey_window(volume) == (0, 900)


def test_a_constant_stack_is_black():
    volume = np.full((2, 5, 5), 77, np.uint16)
    assert not to_uint8(volume, grey_window(volume)).any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_unit_is_a_share_of_the_grey_scale(dtype):
    pixels = torch.tensor([0, 51, 255]).to(dtype).view(1, 1, 1, 3)
    assert normalise(pixels, "unit").tolist() == [[[[0.0, pytest.approx(0.2), 1.0]]]]
    assert normalise(pixels, "unit").dtype == torch.float32


def test_zscore_is_by_sample_over_slices_and_pixels():
    pixels = torch.randint(0, 256, (3, 5, 16, 16), dtype=torch.uint8)
    pixels[1] //= 4
    values = normalise(pixels, "zscore")
    assert values.shape == pixels.shape and values.dtype == torch.float32
    assert values.flatten(1).mean(1).abs().max() < 1e-5
    assert (values.flatten(1).std(1, correction=0) - 1).abs().max() < 1e-5
    assert torch.equal(values[:1], normalise(pixels[:1], "zscore"))


def test_zscore_of_a_flat_sample_is_zero():
    for level in (0, 93, 255):
        assert normalise(torch.full((2, 5, 64, 64), level, dtype=torch.uint8), "zscore").abs().max() < 1e-3


def test_unknown_normalisations_are_refused():
    with pytest.raises(ValueError, match="minmax"):
        normalise(torch.zeros(1, 1, 2, 2), "minmax")
