"""Published coordinates: what is read, what is refused with which sentence, and what networks are shown of them."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from kernels.lumbar.labels import LEVELS, ROWS
from kernels.lumbar.specs import Member, ViewRequest
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.dicom.dicom_writer import upright_grid, write_series
from training.data.external import IMPROVED, PRETRAINING, improved_coordinates, read_pretraining
from training.data.external import with_improved_coordinates as with_improved
from training.data.samples.external_samples import PretrainingSamples, pretrainable
from training.data.tables import LEVEL_TEXTS, Tables, TablesError, read_tables
from training.phantom.dataset import Options, make_dataset
from training.phantom.external import write_external
from training.recipe_schema.fitting import Augmentation, Fitting, Network, Optimisation
from training.recipe_schema.schema import MemberRecipe

CPU = torch.device("cpu")
CANAL = tuple(f"spinal_canal_stenosis_{level}" for level in LEVELS)
FORAMEN = tuple(f"neural_foraminal_narrowing_{level}" for level in LEVELS)
SIZES = {"spider/1_t2.jpg": (120, 80), "lsd/0001.jpg": (64, 96), "osf/ID02.jpg": (60, 60), "tseg/case.jpg": (90, 88)}


def write_image(path: Path, shape: tuple[int, int], places: np.ndarray) -> None:
    """A JPEG with a bright dot, wider than its artefacts, at each (row, column)."""
    rows, columns = np.indices(shape)
    image = np.full(shape, 20.0)
    for row, column in places:
        image += 220 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of four shapes in the published layout, lines from feet to head, without index."""
    lines = []
    for name, (height, width) in SIZES.items():
        source, filename = name.split("/")
        rows = np.linspace(0.15, 0.85, 5) * height
        places = np.rint(np.stack([rows, width * (0.4 + 0.02 * np.arange(5))], 1))
        write_image(tmp_path / "data" / f"processed_{source}_jpgs" / filename, (height, width), places)
        for text, (row, column) in reversed(list(zip(LEVEL_TEXTS, places, strict=True))):
            lines.append((filename, source, int(column), int(row), text, column / width, row / height))
    columns = ["filename", "source", "x", "y", "level", "relative_x", "relative_y"]
    pd.DataFrame(lines, columns=columns).to_csv(tmp_path / PRETRAINING, index=False)
    return tmp_path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# Pretraining images.


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


# Samples of them.


def view(series="sagittal_t2", size_px=48, normalisation="unit", **slices) -> ViewRequest:
    chosen = {"by": "middle", "count": 3, **slices}
    return ViewRequest(series=series, slices=chosen, size_px=size_px, normalisation=normalisation)


def localiser(inputs, targets=CANAL, unit="study", augmentation=None, batch_size=2) -> MemberRecipe:
    member = Member(name="canal", role="localiser", unit=unit, inputs=inputs, targets=targets)
    fitting = Fitting(
        network=Network(name="deeplab_heatmap"),
        loss="heatmap_mse",
        optimisation=Optimisation(epochs=1, batch_size=batch_size, learning_rate=1e-3),
        augmentation=augmentation or Augmentation(),
    )
    return MemberRecipe(member=member, fitting=fitting)


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


# Improved points.

HEADER = ",series_id,relative_x,relative_y,condition,side,instance_number,study_id,level"


@pytest.fixture(scope="module")
def competition(tmp_path_factory) -> tuple[Path, Tables]:
    """A study with a sagittal T2 series of 20 × 40 pixels, numbers 1 to 3, and a T1 series of 30 × 30."""
    root = tmp_path_factory.mktemp("competition")
    for series, shape in (("21", (3, 20, 40)), ("22", (3, 20, 40)), ("11", (3, 30, 30))):
        grid = upright_grid("sagittal", shape, (1.0, 1.0), 4.0, np.zeros(3), np.zeros(3))
        write_series(root / "train_images" / "7" / series, np.zeros(shape, np.uint16), grid, numbers=[1, 2, 3])
    labels = pd.DataFrame("Normal/Mild", index=["7"], columns=list(ROWS))
    labels.to_csv(root / "train.csv", index_label="study_id")
    (root / "train_series_descriptions.csv").write_text(
        "study_id,series_id,series_description\n7,21,Sagittal T2/STIR\n7,22,Sagittal T2/STIR\n7,11,Sagittal T1\n"
    )
    (root / "train_label_coordinates.csv").write_text(
        "study_id,series_id,instance_number,condition,level,x,y\n"
        "7,21,2,Spinal Canal Stenosis,L1/L2,10,5\n"
        "7,21,2,Spinal Canal Stenosis,L2/L3,11,6\n"
        "7,11,1,Left Neural Foraminal Narrowing,L1/L2,12,7\n"
    )
    return root, read_tables(root)


def improved(competition, tmp_path, *lines, header=HEADER) -> list[tuple]:
    root, tables = competition
    (tmp_path / IMPROVED).write_text("\n".join([header, *lines, ""]))
    frame = improved_coordinates(tmp_path, root, tables)
    assert list(frame.columns) == list(tables.coordinates.columns)
    assert [str(kind) for kind in frame.dtypes] == [str(kind) for kind in tables.coordinates.dtypes]
    return sorted(frame[["row", "series_id", "instance", "x", "y"]].itertuples(index=False, name=None))


OWN_FORAMEN = ("left_neural_foraminal_narrowing_l1_l2", "11", 1, 12, 7)
OWN_CANAL = ("spinal_canal_stenosis_l2_l3", "21", 2, 11, 6)


def test_the_canals_point_is_that_of_side_r_in_pixels_of_its_file(competition, tmp_path, caplog):
    lines = ("0,21,0.1,0.5,Spinal Canal Stenosis,L,-1,7,L1/L2", "1,21,0.3,0.4,Spinal Canal Stenosis,R,3,7,L1/L2")
    with caplog.at_level(logging.INFO):
        found = improved(competition, tmp_path, *lines)
    assert found == [OWN_FORAMEN, ("spinal_canal_stenosis_l1_l2", "21", 3, 12, 8), OWN_CANAL]
    assert "1 points replace the competition's" in caplog.text and "0 are new" in caplog.text


def test_the_condition_says_the_side_and_where_it_does_not_the_side_does(competition, tmp_path):
    found = improved(
        competition,
        tmp_path,
        "0,11,0.1,0.2,Left Neural Foraminal Narrowing,R,2,7,L1/L2",
        "1,11,0.3,0.5,Neural Foraminal Narrowing,R,2,7,L5/S1",
    )
    assert ("left_neural_foraminal_narrowing_l1_l2", "11", 2, 3, 6) in found
    assert ("right_neural_foraminal_narrowing_l5_s1", "11", 2, 9, 15) in found and len(found) == 4


def test_x_and_y_count_where_the_table_has_them(competition, tmp_path):
    lines = (
        "21,8.5,9,0.9,0.9,Spinal Canal Stenosis,R,2,7,L1/L2",
        "21,,,0.5,0.5,Spinal Canal Stenosis,R,2,7,L2/L3",
    )
    header = "series_id,x,y,relative_x,relative_y,condition,side,instance_number,study_id,level"
    found = improved(competition, tmp_path, *lines, header=header)
    assert [one[3:] for one in found] == [(12, 7), (8.5, 9), (20, 10)]


@pytest.mark.parametrize("instance", [-1, 0, 1])
def test_an_unknown_slice_is_that_of_the_competitions_point_or_the_line_is_left_out(
    competition, tmp_path, caplog, instance
):
    with caplog.at_level(logging.INFO):
        found = improved(
            competition,
            tmp_path,
            f"0,21,0.5,0.5,Spinal Canal Stenosis,R,{instance},7,L1/L2",
            f"1,21,0.5,0.5,Spinal Canal Stenosis,R,{instance},7,L5/S1",
        )
    assert found == [OWN_FORAMEN, ("spinal_canal_stenosis_l1_l2", "21", 2, 20, 10), OWN_CANAL]
    assert "1 without a slice" in caplog.text


def test_other_studies_series_and_files_are_counted_and_ignored(competition, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        found = improved(
            competition,
            tmp_path,
            "0,21,0.5,0.5,Spinal Canal Stenosis,R,2,8,L1/L2",
            "1,99,0.5,0.5,Spinal Canal Stenosis,R,2,7,L1/L2",
            "2,21,0.5,0.5,Spinal Canal Stenosis,R,77,7,L1/L2",
        )
    assert len(found) == 3 and found[1] == ("spinal_canal_stenosis_l1_l2", "21", 2, 10, 5)
    assert "2 of other studies or series, 0 without a slice, 1 without an image" in caplog.text


def test_of_two_series_the_competitions_own_counts_or_else_the_first(competition, tmp_path):
    found = improved(
        competition,
        tmp_path,
        "0,22,0.5,0.5,Spinal Canal Stenosis,R,2,7,L1/L2",
        "1,21,0.25,0.25,Spinal Canal Stenosis,R,2,7,L1/L2",
        "2,22,0.5,0.5,Spinal Canal Stenosis,R,2,7,L5/S1",
        "3,21,0.25,0.25,Spinal Canal Stenosis,R,2,7,L5/S1",
    )
    assert found[1] == ("spinal_canal_stenosis_l1_l2", "21", 2, 10, 5)
    assert found[3] == ("spinal_canal_stenosis_l5_s1", "22", 2, 20, 10) and len(found) == 4


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("0,21,0.5,0.5,Spinal Stenosis,R,2,7,L1/L2", "line 2: condition is 'Spinal Stenosis', which is none of"),
        ("0,21,0.5,0.5,Spinal Canal Stenosis,right,2,7,L1/L2", "line 2: side is 'right', which is none of 'L', 'R'"),
        ("0,21,0.5,0.5,Spinal Canal Stenosis,R,2,7,L1-L2", "line 2: level is 'L1-L2'"),
        ("0,21,0.5,0.5,Spinal Canal Stenosis,R,2.5,7,L1/L2", "line 2: instance_number is no whole number"),
        ("0,21,0.5,1.5,Spinal Canal Stenosis,R,2,7,L1/L2", "line 2: neither x and y nor relative_x and relative_y"),
        ("0,21,,0.5,Spinal Canal Stenosis,R,2,7,L1/L2", "line 2: neither x and y .*: correct or remove the line"),
    ],
)
def test_improved_lines_that_cannot_be_understood_are_refused(competition, tmp_path, line, sentence):
    with pytest.raises(TablesError, match=f"coords_rsna_improved.csv, {sentence}"):
        improved(competition, tmp_path, line)
    with pytest.raises(TablesError, match="lacks the columns study_id: take the published file"):
        improved(competition, tmp_path, line, header=HEADER.replace("study_id", "study"))


def test_without_the_improved_table_the_competitions_points_stay(competition, tmp_path, caplog):
    root, tables = competition
    with pytest.raises(TablesError, match="holds neither coords_rsna_improved.csv nor coords_pretrain.csv"):
        with_improved(tmp_path, root, tables)
    (tmp_path / "coords_pretrain.csv").touch()
    assert with_improved(tmp_path, root, tables) is tables and "the competition's own points are used" in caplog.text
    with pytest.raises(TablesError, match="is no folder: COORDINATES= names the unpacked"):
        with_improved(tmp_path / "nowhere", root, tables)


# The stand-in.


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> tuple[Path, Path]:
    """A phantom data set of two studies, and the stand-in made of it."""
    data, out = tmp_path_factory.mktemp("phantom") / "data", tmp_path_factory.mktemp("coordinates")
    make_dataset(data, Options(train=2, test=0, seed=4, scale=0.2), jobs=1)
    write_external(out, data, data)
    return data, out


def test_the_stand_in_is_read_as_the_published_data_set_is(stand_in):
    data, out = stand_in
    assert (out / IMPROVED).read_text().startswith(HEADER + "\n0,")
    images = read_pretraining(out).images
    assert {image.source for image in images} == {"spider", "osf"} and len(images) == 4
    assert all(max(image.pixels.shape) == 256 for image in images)
    samples = PretrainingSamples(read_pretraining(out), localiser((view(size_px=64),)), CPU, 0)
    assert next(samples.training(1)).target.isfinite().all()


def test_the_stand_ins_points_are_the_true_ones(stand_in):
    data, out = stand_in
    tables = read_tables(data)
    better = with_improved(out, data, tables)
    assert better.fingerprint != tables.fingerprint and len(better.coordinates) == len(tables.coordinates)
    both = tables.coordinates.merge(better.coordinates, on=["study_id", "row", "series_id"], suffixes=("", "_true"))
    moved = np.hypot(both["x"] - both["x_true"], both["y"] - both["y_true"])
    assert len(both) == len(tables.coordinates) and 0 < moved.median() < 2 and moved.max() < 6


def test_foreign_data_take_improved_points_too(tmp_path):
    """Other syntaxes, sizes and numbers than the phantom's."""
    truth = write_foreign_dataset(tmp_path / "data", studies=1, seed=2, test_studies=0)
    tables = read_tables(tmp_path / "data")
    line = tables.coordinates.iloc[0]
    text = {level: text for text, level in LEVEL_TEXTS.items()}[line["row"][-5:]]
    condition = line["row"][:-6].replace("_", " ").title()
    fields = (0, line["series_id"], 0.25, 0.75, condition, "R", line["instance"], truth.train[0], text)
    (tmp_path / IMPROVED).write_text(f"{HEADER}\n{','.join(map(str, fields))}\n")
    after = improved_coordinates(tmp_path, tmp_path / "data", tables)
    moved = after[after["row"] == line["row"]].iloc[0]
    assert len(after) == len(tables.coordinates) and moved["x"] % 0.25 == 0 and moved["x"] > 15 and moved["y"] > 60
