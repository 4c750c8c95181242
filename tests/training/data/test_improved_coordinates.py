"""Published points in place of the competition's own: which line is whose, and which are refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.labels import ROWS
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.dicom.dicom_writer import upright_grid, write_series
from training.data.external import IMPROVED, improved_coordinates
from training.data.external import with_improved_coordinates as with_improved
from training.data.tables import LEVEL_TEXTS, Tables, TablesError, read_tables

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
