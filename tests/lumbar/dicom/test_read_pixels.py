"""From files to stacks: right pixels from every transfer syntax."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.lumbar.dicom import pixels
from kernels.lumbar.dicom import read_study as reader
from kernels.lumbar.dicom.fast_path_check import agrees
from kernels.lumbar.dicom.header import scan
from tests.support.dicom.dicom_writer import SYNTAXES, make_dataset, place_tags, texture, write_file, write_series
from tests.support.dicom.one_series import SAGITTAL, expected_pixels, kinds, read, words_of


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("dtype", "stored"), [("u2", 12), ("u2", 16), ("i2", 16), ("i2", 12), ("u1", 8)])
@pytest.mark.parametrize("shape", [(30, 24), (23, 24), (30, 23), (23, 25)])
def test_every_syntax_gives_the_bits_that_were_written(tmp_path, syntax, dtype, stored, shape):
    image = texture(shape, top=200 if dtype == "u1" else 4000, dtype=dtype)
    if dtype == "i2":
        image -= 2000
    path = write_file(tmp_path / "7" / "1.dcm", image, syntax, bits_stored=stored)
    assert np.array_equal(pydicom.dcmread(path).pixel_array, image)
    fast = words_of(path)
    odd = shape[0] * shape[1] % 2
    assert (fast is not None) == (
        syntax in ("explicit", "implicit", "rle") and dtype != "u1" and not (odd and syntax == "rle")
    )
    if fast is not None:
        assert np.array_equal(fast.view(dtype), image)
        assert np.array_equal(fast, words_of(path, fast=False))
    study = read(tmp_path)
    assert study.problems == []
    assert np.array_equal(study.stacks[0].pixels[0], expected_pixels((image.astype(int) + 2000).astype("u2")[None])[0])


@pytest.mark.parametrize("syntax", ["explicit", "rle"])
@given(data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_fast_path_agrees_with_pydicom_on_any_content(tmp_path, syntax, data):
    """Runs, noise and both mixed: what PackBits treats differently."""
    rows, columns = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    values = data.draw(st.lists(st.sampled_from([0, 1, 255, 256, 4095, 65535]), min_size=1, max_size=12))
    repeats = data.draw(st.lists(st.integers(1, 140), min_size=len(values), max_size=len(values)))
    image = np.resize(np.repeat(np.array(values, "u2"), repeats), (rows, columns))
    path = write_file(tmp_path / "1.dcm", image, syntax)
    fast = words_of(path)
    assert fast is None or np.array_equal(fast, image)
    assert (fast is None) == (syntax == "rle" and rows * columns % 2 == 1)


def test_the_fast_path_is_taken_once_it_is_confirmed_on_a_file_of_the_series(tmp_path, monkeypatch):
    volume = texture((6, 30, 24))
    write_series(tmp_path / "7", volume, SAGITTAL, syntax="rle")
    calls = []
    monkeypatch.setattr(reader, "agrees", lambda *given: calls.append(1) or agrees(*given))
    monkeypatch.setattr(reader, "decode_by_pydicom", lambda _: pytest.fail("decoded twice"))
    first, second = read(tmp_path), read(tmp_path)
    assert len(calls) == 2  # of twelve files
    assert np.array_equal(first.stacks[0].pixels, second.stacks[0].pixels)
    assert np.array_equal(first.stacks[0].pixels, expected_pixels(volume))


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "rle"])
@pytest.mark.parametrize("shape", [(2, 3), (30, 24), (80, 90)])
def test_a_fast_reading_is_confirmed_as_it_is_and_in_no_other_way(tmp_path, syntax, shape):
    path = write_file(tmp_path / "1.dcm", texture(shape), syntax)
    buffer, size = pixels.read_file(path)
    found = scan(buffer.data[:size])
    header = reader.parse(found.values)
    words = pixels.decode_fast(buffer, size, found, header).copy()
    assert agrees(buffer, size, found, header, words)
    swapped, shifted, tops = words.byteswap(), np.roll(words, 1), words ^ 0x100
    assert not any(agrees(buffer, size, found, header, other) for other in (swapped, shifted, tops, words + 1))
    assert not agrees(buffer, size, replace(found, pixel_offset=found.pixel_offset + 2), header, words)
    assert not agrees(buffer, size, found, replace(header, bits_stored=header.bits_stored - 1), words)
    assert not agrees(buffer, size, replace(found, pixel_length=2 * words.nbytes), header, words) or syntax == "rle"


@pytest.mark.parametrize(("shape", "claimed"), [((30, 24), (20, 24)), ((30, 24), (28, 24)), ((30, 23), (28, 23))])
def test_a_series_that_holds_more_pixels_than_it_claims_is_not_confirmed(tmp_path, shape, claimed):
    path = write_file(tmp_path / "1.dcm", texture(shape), "rle")
    buffer, size = pixels.read_file(path)
    found = scan(buffer.data[:size])
    header = replace(reader.parse(found.values), rows=claimed[0], columns=claimed[1])
    words = pixels.decode_fast(buffer, size, found, header)
    segments = pixels.rle_segments(buffer.data[:size], found)
    assert words is not None and pixels.unpack_planes(buffer, size, segments, shape[0] + 2, shape[1]) is None
    assert not agrees(buffer, size, found, header, words)


def test_where_the_fast_path_differs_pydicom_reads_the_series(tmp_path, monkeypatch):
    volume = texture((6, 30, 24))
    write_series(tmp_path / "7", volume, SAGITTAL)
    monkeypatch.setattr(reader, "decode_fast", lambda *_: np.zeros((30, 24), np.uint16))
    study = read(tmp_path)
    assert kinds(study) == ["fast-path-differs"]
    assert np.array_equal(study.stacks[0].pixels, expected_pixels(volume))


def test_studies_do_not_share_memory(tmp_path):
    for study, seed in (("a", 1), ("b", 2)):
        write_series(tmp_path / study / "7", texture((6, 30, 24), seed), SAGITTAL)
    first = read(tmp_path / "a").stacks[0].pixels
    kept = first.copy()
    second = read(tmp_path / "b").stacks[0].pixels
    assert np.array_equal(first, kept) and not np.array_equal(first, second)


def test_stray_bits_above_the_stored_ones_are_dropped_and_named(tmp_path):
    image = texture((30, 24))
    write_file(tmp_path / "7" / "1.dcm", image | 0xA000, bits_stored=12)
    study = read(tmp_path)
    assert kinds(study) == ["stray-bits"]
    assert np.array_equal(study.stacks[0].pixels[0], expected_pixels(image[None])[0])


def test_signed_values_keep_their_order(tmp_path):
    image = (texture((30, 24)) - np.uint16(2000)).view("i2")
    unextended = (image & 0x0FFF).astype("u2")  # 12 bits, the sign bit at 11 and nothing above it
    write_file(tmp_path / "7" / "1.dcm", unextended.view("i2"), bits_stored=12)
    assert np.array_equal(read(tmp_path).stacks[0].pixels[0], expected_pixels((image + 2000).astype("u2")[None])[0])


def test_values_stored_high_in_the_word_are_shifted(tmp_path):
    image = texture((30, 24))
    write_file(tmp_path / "7" / "1.dcm", image << 4, bits_stored=12, HighBit=15)
    assert np.array_equal(read(tmp_path).stacks[0].pixels[0], expected_pixels(image[None])[0])


def test_monochrome1_is_inverted(tmp_path):
    volume = texture((6, 30, 24))
    write_series(tmp_path / "7", volume, SAGITTAL, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read(tmp_path).stacks[0].pixels, expected_pixels(65535 - volume))


def test_one_slope_for_all_changes_nothing_and_a_negative_one_inverts(tmp_path):
    volume = texture((6, 30, 24))
    write_series(tmp_path / "a" / "7", volume, SAGITTAL, RescaleSlope="2.5", RescaleIntercept="-100")
    write_series(tmp_path / "b" / "7", volume, SAGITTAL, RescaleSlope="-1", RescaleIntercept="0")
    assert np.array_equal(read(tmp_path / "a").stacks[0].pixels, expected_pixels(volume))
    assert np.array_equal(read(tmp_path / "b").stacks[0].pixels, expected_pixels(65535 - volume))


def test_slopes_that_differ_are_applied_before_the_window(tmp_path):
    volume = texture((6, 30, 24))
    for index, slope in enumerate((1.0, 2.0, 0.5, 1.0, 4.0, 1.0)):
        stored = (volume[index] / slope).astype("u2")
        tags = {"RescaleSlope": str(slope), "RescaleIntercept": "0"}
        write_file(tmp_path / "7" / f"{index}.dcm", stored, **place_tags(SAGITTAL, index), **tags)
    difference = read(tmp_path).stacks[0].pixels.astype(int) - expected_pixels(volume)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("tags", [{"RescaleSlope": "0"}, {"RescaleSlope": "1e300"}, {"RescaleIntercept": "NaN"}])
def test_a_rescale_that_no_scanner_means_is_named_and_ignored(tmp_path, tags):
    volume = texture((6, 30, 24))
    with warnings.catch_warnings(action="ignore"):
        write_series(tmp_path / "7", volume, SAGITTAL, **tags)
    study = read(tmp_path)
    assert set(kinds(study)) == {"bad-rescale"}
    assert np.array_equal(study.stacks[0].pixels, expected_pixels(volume))


def test_wide_and_floating_values_keep_their_order(tmp_path):
    """32-bit integers, and floating values of which some are not finite: what a map or a report may hold."""
    image = texture((30, 24))
    write_file(tmp_path / "a" / "7" / "1.dcm", image.astype("u4") * 70000)
    floating = make_dataset(image.astype("u4"), PixelRepresentation=None)
    floating.FloatPixelData = np.where(image == image.min(), np.nan, image * 1e-3).astype("<f4").tobytes()
    del floating.PixelData, floating.BitsStored, floating.HighBit
    (tmp_path / "b" / "7").mkdir(parents=True)
    floating.save_as(tmp_path / "b" / "7" / "1.dcm", enforce_file_format=True)
    for folder in ("a", "b"):
        study = read(tmp_path / folder)
        assert study.problems == []
        difference = study.stacks[0].pixels[0].astype(int) - expected_pixels(image[None])[0]
        assert np.abs(difference).max() <= 2


def test_a_constant_stack_is_black_and_named(tmp_path):
    write_series(tmp_path / "7", np.full((6, 30, 24), 9, "u2"), SAGITTAL)
    study = read(tmp_path)
    assert kinds(study) == ["constant-pixels"] and not study.stacks[0].pixels.any()
