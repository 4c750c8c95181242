"""Published images for pretraining: what is read, and what is refused with which sentence."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.networks.pretraining_images import SIZES, write_image, write_pretraining
from training.data.external import PRETRAINING, read_pretraining
from training.data.tables import TablesError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The published images' stand-ins."""
    return write_pretraining(tmp_path)


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_points_are_the_relative_place_in_the_image_as_it_is(folder, caplog):
    with caplog.at_level(logging.WARNING):
        images = read_pretraining(folder).images
    assert not caplog.messages
    assert {f"{image.source}/{image.filename}": image.pixels.shape for image in images} == SIZES
    for image in images:
        rows, columns = image.points.round().astype(int).T
        assert (np.diff(rows) > 0).all() and image.pixels[rows, columns].min() > 200


def test_resized_images_are_said_and_their_relative_places_used(folder, caplog):
    file = folder / "data" / "processed_lsd_jpgs" / "0001.jpg"
    cv2.imwrite(str(file), cv2.resize(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), (192, 128)))
    before = next(image for image in read_pretraining(folder).images if image.source == "lsd")
    assert "do not fit the size of 1 images; relative_x and relative_y are used" in caplog.text
    assert before.pixels.shape == (128, 192) and before.points[0].tolist() == [
        2 * round(0.15 * 64),
        2 * round(0.4 * 96),
    ]


def test_a_spreadsheets_way_of_writing_makes_no_difference(folder):
    before = read_pretraining(folder)
    header, *lines = (folder / PRETRAINING).read_text().splitlines()
    text = [f"\ufeff,{header}", "", *(f"{number}, {line} " for number, line in enumerate(lines)), f"99,{lines[0]}"]
    (folder / PRETRAINING).write_bytes("\r\n".join(text).encode())
    after = read_pretraining(folder)
    assert after.fingerprint != before.fingerprint and len(after.images) == len(before.images)
    for one, other in zip(before.images, after.images, strict=True):
        assert one.filename == other.filename and np.array_equal(one.points, other.points)


def test_the_fingerprint_is_that_of_table_and_pixels(folder):
    first = read_pretraining(folder).fingerprint
    assert read_pretraining(folder).fingerprint == first
    write_image(folder / "data" / "processed_osf_jpgs" / "ID02.jpg", (60, 60), np.array([[30, 30]]))
    assert read_pretraining(folder).fingerprint != first


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("relative_x", "rel_x", r"lacks the columns relative_x: take the published file"),
        ("L3/L4", "L3-L4", r"coords_pretrain.csv, line 4: level is 'L3-L4', which is none of 'L1/L2'"),
        (",spider,", ",spyder,", r"line 2: source is 'spyder', which is none of 'lsd'"),
        ("0.425", "1.425", "line 5: relative_x or relative_y is no number from 0 to 1: correct or remove the line"),
        ("0.425", "", "line 5: relative_x or relative_y is no number"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_file_line_and_remedy(folder, old, new, sentence):
    change(folder / PRETRAINING, old, new)
    with pytest.raises(TablesError, match=sentence):
        read_pretraining(folder)


def test_a_folder_without_the_table_or_without_images_is_said(folder, tmp_path):
    with pytest.raises(
        TablesError, match=r"coords_pretrain.csv does not exist: COORDINATES= names the unpacked Kaggle"
    ):
        read_pretraining(tmp_path / "data")
    (folder / "data").rename(folder / "elsewhere")
    with pytest.raises(TablesError, match="not one of its images can be used: .* with its folder data/"):
        read_pretraining(folder)


def lose_image(folder: Path) -> None:
    (folder / "data" / "processed_spider_jpgs" / "1_t2.jpg").unlink()


def cut_image_short(folder: Path) -> None:
    (folder / "data" / "processed_spider_jpgs" / "1_t2.jpg").write_bytes(b"\xff\xd8 no image")


def empty_image(folder: Path) -> None:
    (folder / "data" / "processed_spider_jpgs" / "1_t2.jpg").write_bytes(b"")


def lose_level(folder: Path) -> None:
    header, _, *lines = (folder / PRETRAINING).read_text().splitlines()
    (folder / PRETRAINING).write_text("\n".join([header, *lines]))


def name_level_twice(folder: Path) -> None:
    change(folder / PRETRAINING, "L4/L5", "L5/S1")


def exchange_levels(folder: Path) -> None:
    change(folder / PRETRAINING, "L4/L5", "L?")
    change(folder / PRETRAINING, "L1/L2", "L4/L5")
    change(folder / PRETRAINING, "L?", "L1/L2")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lose_image, "as their files are missing"),
        (cut_image_short, "as their files are no images"),
        (empty_image, "as their files are no images"),
        (lose_level, "as they do not have one line for each level"),
        (name_level_twice, "as they do not have one line for each level"),
        (exchange_levels, "as their levels do not follow each other from head to feet"),
    ],
)
def test_images_that_cannot_be_used_are_left_out_with_a_count(folder, caplog, damage, why):
    damage(folder)
    images = read_pretraining(folder).images
    assert [image.source for image in images] == ["lsd", "osf", "tseg"]
    assert f"1 images are left out, {why} (the first: spider/1_t2.jpg)" in caplog.text
